"""Attention with an additive bias per head and pair of tokens: plain and fast implementations.

Shapes: B windows, N tokens in each, D = C // heads. packed: output of one projection, (B, N, parts, heads, D):
queries, keys and values, or only keys and values with separate queries (B, heads, N, D).
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def split(packed: Tensor, query: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Packed projections, and separate queries if any -> q, k, v, each (B, heads, N, D)."""
    parts = packed.permute(2, 0, 3, 1, 4).unbind()
    q, k, v = parts if query is None else (query, *parts)
    return q, k, v


def attention_weights(q: Tensor, k: Tensor, bias: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D) + bias) for a bias (heads, N, N) or (B, heads, N, N): the plain implementation."""
    return torch.add(bias, q @ k.mT, alpha=q.shape[-1] ** -0.5).softmax(dim=-1)


def biased_attention(
    packed: Tensor, bias: Tensor, query: Tensor | None = None, *, in_place: bool = False
) -> Tensor:
    """softmax(q k^T / sqrt(D) + bias) v for a bias (heads, N, N) or (B, heads, N, N) -> (B, N, C).

    in_place: use the implementation for float32 training on a CPU, with one bias for all windows. PyTorch's fused
    kernel has no gradient for its mask there, and falls back to a path slower than the plain one.
    """
    if in_place:
        attended: Tensor = _InPlaceAttention.apply(packed, bias, query)
    else:
        mask = bias if bias.ndim == 4 else bias[None]
        attended = F.scaled_dot_product_attention(*split(packed, query), attn_mask=mask)
    return attended.transpose(1, 2).flatten(2)


class _InPlaceAttention(torch.autograd.Function):
    """The plain form with one buffer for scores and weights, and one for all gradients of the projection."""

    @staticmethod
    def forward(ctx: Any, packed: Tensor, bias: Tensor, query: Tensor | None) -> Tensor:
        B, N, _, heads, D = packed.shape
        q, k, v = (x.reshape(B * heads, N, D) for x in split(packed, query))
        attn = packed.new_empty(B * heads, N, N)
        torch.baddbmm(attn, q, k.mT, beta=0, alpha=D**-0.5, out=attn)
        attn.view(B, heads, N, N).add_(bias)
        torch.softmax(attn, dim=-1, out=attn)
        ctx.save_for_backward(packed, bias, query, attn)
        return torch.bmm(attn, v).view(B, heads, N, D)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        packed, bias, query, attn = ctx.saved_tensors
        if torch.is_grad_enabled():  # double backward: through the plain form
            inputs = {i: t for i, t in enumerate((packed, bias, query)) if ctx.needs_input_grad[i]}
            q, k, v = split(packed, query)
            y = attention_weights(q, k, bias) @ v
            wanted = torch.autograd.grad(y, tuple(inputs.values()), grad, create_graph=True)
            gradients = dict(zip(inputs, wanted, strict=True))
            return tuple(gradients.get(i) for i in range(3))
        _, N, num_parts, heads, D = packed.shape
        q, k, v = (x.reshape(-1, N, D) for x in split(packed, query))
        grad = grad.reshape(-1, N, D)
        d_v = torch.bmm(attn.mT, grad)
        d_scores = torch.bmm(grad, v.mT)
        torch.ops.aten._softmax_backward_data.out(d_scores, attn, -1, attn.dtype, grad_input=d_scores)
        d_bias = d_scores.unflatten(0, (-1, heads)).sum(dim=0)
        d_q = torch.baddbmm(q, d_scores, k, beta=0, alpha=D**-0.5)
        d_k = torch.baddbmm(k, d_scores.mT, q, beta=0, alpha=D**-0.5)
        d_parts = [x.unflatten(0, (-1, heads)).transpose(1, 2) for x in (d_q, d_k, d_v)]  # (B, N, heads, D)
        d_query = None if num_parts == 3 else d_q.unflatten(0, (-1, heads))
        return torch.stack(d_parts[3 - num_parts :], dim=2), d_bias, d_query
