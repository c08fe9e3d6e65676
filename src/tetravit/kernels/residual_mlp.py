"""A residual pre-norm MLP, y = x + keep * mlp(norm(x)), in chunks of tokens, with its own backward pass.

The hidden features of all tokens are the largest tensor of most models. On a CPU, allocating, filling and freeing
such memory costs as much as arithmetic: here chunks of tokens pass from the norm to the residual while they are in
the cache, and the last product accumulates into the residual. The hidden features before the activation are kept for
the backward pass; norm and activation are recomputed.

Shapes: T tokens, C width, F hidden width.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tetravit.kernels.linear import fused_linear


class MlpWeights(NamedTuple):
    """The parameters of the norm and the two linear layers."""

    norm: Tensor  # (C,)
    norm_bias: Tensor
    w1: Tensor  # (F, C)
    b1: Tensor
    w2: Tensor  # (C, F)
    b2: Tensor


def plain_residual_mlp(x: Tensor, keep: Tensor | None, weights: MlpWeights, eps: float) -> Tensor:
    """The plain form, all tokens at once; arguments as in `residual_mlp`."""
    normed = F.layer_norm(x, x.shape[-1:], weights.norm, weights.norm_bias, eps)
    branch = F.linear(F.gelu(F.linear(normed, weights.w1, weights.b1)), weights.w2, weights.b2)
    return x + (branch if keep is None else keep * branch)


def residual_mlp(x: Tensor, keep: Tensor | None, weights: MlpWeights, eps: float, part: int) -> Tensor:
    """Tokens (T, C) -> tokens after the MLP, `part` tokens at a time.

    Args:
        x: tokens (T, C).
        keep: factor of the branch of each token (T, 1); None: 1.
        weights: of the dtype of the tokens.
        eps: of the norm.
        part: tokens per chunk.
    """
    if torch.is_grad_enabled():
        return _ResidualMlp.apply(x, keep, *weights, eps, part)
    if len(x) <= part:
        return _evaluate(x, keep, weights, eps)
    y = torch.empty_like(x)
    for i in range(0, len(x), part):
        tokens = slice(i, i + part)
        y[tokens] = _evaluate(x[tokens], None if keep is None else keep[tokens], weights, eps)
    return y


def _evaluate(x: Tensor, keep: Tensor | None, weights: MlpWeights, eps: float) -> Tensor:
    """The output for one chunk: two fused products."""
    normed = F.layer_norm(x, x.shape[1:], weights.norm, weights.norm_bias, eps)
    active = fused_linear(normed, weights.w1, weights.b1, gelu=True)
    if keep is None:
        return fused_linear(active, weights.w2, weights.b2, x)
    return torch.addcmul(x, keep, fused_linear(active, weights.w2, weights.b2))


def _forward(
    x: Tensor, keep: Tensor | None, weights: MlpWeights, eps: float, part: int, hidden: Tensor
) -> Tensor:
    """The output; the hidden features before the activation go to `hidden` (T, F)."""
    norm, norm_bias, w1, b1, w2, b2 = weights
    y = torch.empty_like(x) if keep is not None else x + b2
    for i in range(0, len(x), part):
        tokens = slice(i, i + part)
        normed = F.layer_norm(x[tokens], x.shape[1:], norm, norm_bias, eps)
        inner = torch.mm(normed, w1.mT, out=hidden[tokens])
        active = F.gelu(inner.add_(b1))
        if keep is None:
            y[tokens].addmm_(active, w2.mT)
        else:
            torch.addcmul(x[tokens], keep[tokens], torch.addmm(b2, active, w2.mT), out=y[tokens])
    return y


class _ResidualMlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, keep: Tensor | None, *rest: Any) -> Tensor:
        *parameters, eps, part = rest
        weights = MlpWeights(*parameters)
        hidden = x.new_empty(x.shape[0], weights.w1.shape[0])
        y = _forward(x, keep, weights, eps, part, hidden)
        ctx.save_for_backward(x, keep, hidden, *weights)
        ctx.eps, ctx.part = eps, part
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, keep, hidden, *parameters = ctx.saved_tensors
        if torch.is_grad_enabled():  # double backward: through the plain form
            y = plain_residual_mlp(x, keep, MlpWeights(*parameters), ctx.eps)
            inputs = {i: t for i, t in enumerate((x, None, *parameters)) if ctx.needs_input_grad[i]}
            wanted = torch.autograd.grad(y, tuple(inputs.values()), grad, create_graph=True)
            gradients = dict(zip(inputs, wanted, strict=True))
            return *(gradients.get(i) for i in range(8)), None, None
        norm, norm_bias, w1, _, w2, _ = parameters
        d_x = torch.empty_like(x)
        d_norm, d_norm_bias, d_w1, d_b1, d_w2, d_b2 = sums = [torch.zeros_like(p) for p in parameters]
        for i in range(0, len(x), ctx.part):
            tokens = slice(i, i + ctx.part)
            g = grad[tokens] if keep is None else grad[tokens] * keep[tokens]
            ones = g.new_ones(len(g))  # sums over tokens as matrix products take half the time
            d_b2.addmv_(g.mT, ones)
            d_w2.addmm_(g.mT, F.gelu(hidden[tokens]))
            d_hidden = torch.ops.aten.gelu_backward(g @ w2, hidden[tokens])
            d_b1.addmv_(d_hidden.mT, ones)
            normed, mean, rstd = torch.native_layer_norm(x[tokens], x.shape[1:], norm, norm_bias, ctx.eps)
            d_w1.addmm_(d_hidden.mT, normed)
            behind, d_scale, d_shift = torch.ops.aten.native_layer_norm_backward(
                d_hidden @ w1, x[tokens], x.shape[1:], mean, rstd, norm, norm_bias, [True] * 3
            )
            d_norm.add_(d_scale)
            d_norm_bias.add_(d_shift)
            torch.add(grad[tokens], behind, out=d_x[tokens])
        return d_x, None, *sums, None, None
