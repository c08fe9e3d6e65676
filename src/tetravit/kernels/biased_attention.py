"""Attention with an added bias per head and pair of tokens: the plain form, and the fast ones.

Shapes: B windows, N tokens in each, D = C // heads. packed: what one projection gives, (B, N, parts, heads, D):
queries, keys and values, or keys and values alone where the queries (B, heads, N, D) come from elsewhere.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def split(packed: Tensor, query: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Packed projections, and queries from elsewhere if any -> q, k, v, each (B, heads, N, D)."""
    parts = packed.permute(2, 0, 3, 1, 4).unbind()
    q, k, v = parts if query is None else (query, *parts)
    return q, k, v


def attention_weights(q: Tensor, k: Tensor, bias: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D) + bias) for a bias (heads, N, N) -> (B, heads, N, N): the plain form."""
    return torch.add(bias, q @ k.mT, alpha=q.shape[-1] ** -0.5).softmax(dim=-1)


def biased_attention(packed: Tensor, bias: Tensor, query: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(D) + bias) v for a bias (heads, N, N) -> (B, N, C).

    The fused kernel of the CPU has no gradient for its mask: PyTorch would fall back to a path slower than the
    plain one, so training in full precision takes its own there.
    """
    if _trains_on_cpu(packed, bias):
        read: Tensor = _InPlaceAttention.apply(packed, bias, query)
    else:
        read = F.scaled_dot_product_attention(*split(packed, query), attn_mask=bias[None])
    return read.transpose(1, 2).flatten(2)


def _trains_on_cpu(packed: Tensor, bias: Tensor) -> bool:
    capturing = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]
    if capturing or not torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
        return False
    single = packed.dtype == bias.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return single and bias.requires_grad and packed.device.type == "cpu"


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
        ctx.save_for_backward(q, k, v, attn)
        ctx.parts, ctx.heads = packed.shape[2], heads
        return torch.bmm(attn, v).view(B, heads, N, D)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        q, k, v, attn = ctx.saved_tensors
        N, D = q.shape[1:]
        grad = grad.reshape(-1, N, D)
        d_v = torch.bmm(attn.mT, grad)
        d_scores = torch.bmm(grad, v.mT)
        torch.ops.aten._softmax_backward_data.out(d_scores, attn, -1, attn.dtype, grad_input=d_scores)
        d_bias = d_scores.unflatten(0, (-1, ctx.heads)).sum(dim=0)
        d_q = torch.baddbmm(q, d_scores, k, beta=0, alpha=D**-0.5)
        d_k = torch.baddbmm(k, d_scores.mT, q, beta=0, alpha=D**-0.5)
        d_parts = [
            x.unflatten(0, (-1, ctx.heads)).transpose(1, 2) for x in (d_q, d_k, d_v)
        ]  # (B, N, heads, D)
        d_query = None if ctx.parts == 3 else d_q.unflatten(0, (-1, ctx.heads))
        return torch.stack(d_parts[3 - ctx.parts :], dim=2), d_bias, d_query
