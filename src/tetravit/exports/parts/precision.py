"""Models in 16 bits whose norms and softmax stay in float32, as graphs keep them.

Half precision ends at 65504 and has 11 bits: sums over channels and exponentials need more.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

HALVES = (torch.float16, torch.bfloat16)
NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._NormBase)
WHOLE = {  # computed in float32
    F.layer_norm,
    F.group_norm,
    F.batch_norm,
    F.instance_norm,
    F.rms_norm,
    F.normalize,
    F.softmax,
    torch.layer_norm,
    torch.batch_norm,
    torch.group_norm,
    torch.instance_norm,
    torch.softmax,
    torch.norm,
    torch.linalg.vector_norm,
    Tensor.softmax,
    Tensor.norm,
}


class Float32Norms(TorchFunctionMode):
    """Inside, norms and softmax of 16-bit tensors are computed in float32, and give 16 bits again."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if func is F.scaled_dot_product_attention and args[0].dtype in HALVES:
            return attention(*args, **given)
        first = args[0] if args else given.get("input")
        if func not in WHOLE or not isinstance(first, Tensor) or first.dtype not in HALVES:
            return func(*args, **given)
        if given.get("dtype") is not None:
            return func(*args, **given)
        whole = func(*map(_whole, args), **{name: _whole(value) for name, value in given.items()})
        return whole.to(first.dtype)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attention in 16 bits with its softmax in float32; see `F.scaled_dot_product_attention`."""
    assert not dropout_p
    assert not is_causal
    assert not enable_gqa
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    scores = ((query * factor) @ key.transpose(-2, -1)).float()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, float("-inf"))
    elif attn_mask is not None:
        scores = scores + attn_mask.float()
    return scores.softmax(dim=-1).to(value.dtype) @ value


def to_half(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The model in 16 bits, the parameters and statistics of its norms in float32; in place."""
    model.to(dtype)
    for module in model.modules():
        if isinstance(module, NORMS):
            module.float()
    return model


def _whole(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype in HALVES else value
