"""A linear layer fused with bias, GELU and residual.

PyTorch's addmm first writes the bias over the whole output; GELU and residual are separate passes. On a CPU, oneDNN
does all of it while a tile of the product is in the cache. The plain form is used if PyTorch was built without
oneDNN, under a dispatch mode, on processors without AVX-512, and while gradients are recorded: ReLUs of the heads
amplify the different rounding into gradients a thousand times farther from the published ones. With AVX2, oneDNN's
GELU takes longer than the passes it saves, and its products longer than MKL's, unless one of the widths is at most
`NARROW`.

Shapes: T tokens, C width, F output width.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NARROW = 64  # up to this width the passes over many tokens that fusing saves take longer than the product


def plain_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None = None, *, gelu: bool = False
) -> Tensor:
    """The plain form; arguments as in `fused_linear`."""
    y = F.linear(x, weight, bias)
    if gelu:
        y = F.gelu(y)
    return y if residual is None else residual + y


def fused_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None = None, *, gelu: bool = False
) -> Tensor:
    """Tokens (T, C) -> residual + gelu(x weight^T + bias) (T, F).

    Args:
        x: tokens (T, C).
        weight: (F, C), of the dtype of the tokens.
        bias: (F,); None: 0.
        residual: added to the output (T, F); None: 0.
        gelu: whether to apply the exact GELU before the residual.
    """
    both = gelu and residual is not None  # not fused by oneDNN
    if both or torch._C._len_torch_dispatch_stack() > 0:  # a FLOP counter has no formula for fused products
        return plain_linear(x, weight, bias, residual, gelu=gelu)
    if not torch.is_grad_enabled() and _for_onednn(x, weight, bias):
        fused: Any = torch.ops.mkldnn._linear_pointwise
        if residual is not None:
            return fused.binary(x, residual, weight, bias, "add")
        return fused(x, weight, bias, "gelu" if gelu else "none", [], "none")
    if residual is None:
        return plain_linear(x, weight, bias, gelu=gelu)
    if bias is None:
        return torch.addmm(residual, x, weight.mT)
    return torch.add(residual, bias).addmm_(x, weight.mT)


def _for_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether oneDNN supports the inputs: plain, non-empty float32 tensors. It ignores strides of a bias."""
    return (
        (bias is None or bias.is_contiguous())
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and type(x) is Tensor
        and type(weight) in (Tensor, nn.Parameter)
        and x.numel() > 0
        and torch._C._get_mkldnn_enabled()
        and torch.backends.mkldnn.is_available()
        and _fuses_faster(min(weight.shape) <= NARROW)
    )


@cache
def _fuses_faster(narrow: bool) -> bool:
    """Whether the fused operation exists and is faster on this processor. narrow: a width is at most `NARROW`."""
    capability = torch.backends.cpu.get_cpu_capability()
    faster = "512" in capability or (narrow and capability == "AVX2")
    return faster and hasattr(torch.ops.mkldnn, "_linear_pointwise")
