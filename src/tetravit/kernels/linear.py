"""A linear layer in one pass with what follows it: bias, GELU, residual.

PyTorch's addmm writes the bias over the whole answer before it multiplies; GELU and residual are passes of their
own. On a processor oneDNN does all of it while a tile of the product is near the core. Where PyTorch was built
without oneDNN, or something listens to every operation, the plain form answers; and where gradients are recorded:
ReLUs of the heads turn other rounding into other gradients, a thousand times as far from the published ones.

Shapes: T tokens, C width, F width of the answer.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


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
        weight: (F, C), of the same type as the tokens.
        bias: (F,); None: 0.
        residual: what the answer adds to (T, F); None: 0.
        gelu: whether the exact GELU stands in front of the residual.
    """
    if not torch.is_grad_enabled():
        return _forward(x, weight, bias, residual, gelu)
    if gelu:
        y = F.gelu(fused_linear(x, weight, bias))
        return y if residual is None else residual + y
    return _Linear.apply(x, weight, bias, residual)  # type: ignore[no-any-return]


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, gelu: bool) -> Tensor:
    if (gelu and residual is not None) or not _for_onednn(x, weight, bias):
        return plain_linear(x, weight, bias, residual, gelu=gelu)
    fused: Any = torch.ops.mkldnn._linear_pointwise
    if residual is not None:
        return fused.binary(x, residual, weight, bias, "add")  # type: ignore[no-any-return]
    return fused(x, weight, bias, "gelu" if gelu else "none", [], "none")  # type: ignore[no-any-return]


def _for_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether oneDNN may be asked: for plain float32 tensors that are not empty, unless operations are listened to.

    A FLOP counter, for one, knows the products of PyTorch and not these. Strides of a bias are not looked at there.
    """
    return (
        (bias is None or bias.is_contiguous())
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and type(x) is Tensor
        and type(weight) in (Tensor, nn.Parameter)
        and x.numel() > 0
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._get_mkldnn_enabled()  # type: ignore[attr-defined]
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
        wants_x, wants_weight = ctx.needs_input_grad[:2]
        ctx.save_for_backward(x if wants_weight else None, weight if wants_x else None)
        if residual is None or bias is None:
            return plain_linear(x, weight, bias, residual)
        return torch.add(residual, bias).addmm_(x, weight.mT)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors  # each None where nothing asks for it
        _, _, wants_bias, wants_residual = ctx.needs_input_grad
        return (
            None if weight is None else grad @ weight,
            None if x is None else weight_gradient(x, grad),
            torch.mv(grad.mT, grad.new_ones(len(grad))) if wants_bias else None,  # half the time of a sum
            grad if wants_residual else None,
        )


def weight_gradient(x: Tensor, grad: Tensor) -> Tensor:
    """grad^T x (F, C) for tokens x (T, C) and the gradient of the answer (T, F).

    Over many tokens the product is faster by a tenth where its answer is wide, not tall; turning that is a copy.
    """
    (tokens, width), answer = x.shape, grad.shape[1]
    if answer > width and tokens > 4 * width:
        return (x.mT @ grad).mT.contiguous()
    return grad.mT @ x
