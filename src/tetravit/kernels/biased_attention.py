"""Attention with an added bias per head and pair of tokens: the plain form, and the fast ones.

Shapes: B windows, N tokens in each, D = C // heads. packed: what one projection gives, (B, N, parts, heads, D):
queries, keys and values, or keys and values alone where the queries (B, heads, N, D) come from elsewhere.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

PART = 2**20  # scores at a time and processor core in the backward pass


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

    The fused kernel of the CPU has no gradient for its mask, and PyTorch would fall back to a path slower than
    the plain one: training in full precision writes the gradient down here.
    """
    if _trains_on_cpu(packed, bias):
        read: Tensor = _BiasedAttention.apply(packed, bias, query)
    else:
        q, k, v = split(packed, query)
        read = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None])
    if torch.compiler.is_exporting():  # how a kernel lays out its answer is not for a program to rely on
        read = read.clone(memory_format=torch.contiguous_format)
    return read.transpose(1, 2).flatten(2)


def _trains_on_cpu(packed: Tensor, bias: Tensor) -> bool:
    capturing = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]
    if capturing or not torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
        return False
    single = packed.dtype == bias.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return single and bias.requires_grad and packed.device.type == "cpu"


class _BiasedAttention(torch.autograd.Function):
    """The fused kernel forward; backward the plain form, whose weights are computed once more, part by part."""

    @staticmethod
    def forward(ctx: Any, packed: Tensor, bias: Tensor, query: Tensor | None) -> Tensor:
        q, k, v = split(packed, query)
        ctx.save_for_backward(packed, bias, query)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.detach()[None])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        packed, bias, query = ctx.saved_tensors
        if torch.is_grad_enabled():  # gradients of gradients: those of the plain form
            q, k, v = split(packed, query)
            inputs = {i: x for i, x in enumerate((packed, bias, query)) if ctx.needs_input_grad[i]}
            found = torch.autograd.grad(
                attention_weights(q, k, bias) @ v, tuple(inputs.values()), grad, create_graph=True
            )
            gradients = dict(zip(inputs, found, strict=True))
            return gradients.get(0), gradients.get(1), gradients.get(2)
        B, N, _, heads, D = packed.shape
        d_packed, d_bias = torch.empty_like(packed), torch.zeros_like(bias)
        d_query = None if query is None else torch.empty_like(query, memory_format=torch.contiguous_format)
        per_part = max(1, PART // (heads * N * N)) * torch.get_num_threads()
        for i in range(0, B, per_part):
            part = slice(i, i + per_part)
            parts = split(packed[part], None if query is None else query[part])
            q, k, v = (x.reshape(-1, N, D) for x in parts)
            g = grad[part].reshape(-1, N, D)
            weights = torch.bmm(q, k.mT).unflatten(0, (-1, heads))
            weights = weights.mul_(D**-0.5).add_(bias).flatten(0, 1)
            torch.softmax(weights, dim=-1, out=weights)
            d_scores = torch.bmm(g, v.mT)
            torch.ops.aten._softmax_backward_data.out(
                d_scores, weights, -1, weights.dtype, grad_input=d_scores
            )
            d_bias.add_(d_scores.unflatten(0, (-1, heads)).sum(dim=0))
            d_q, d_k, d_v = split(d_packed[part], None if d_query is None else d_query[part])
            d_q.copy_(torch.baddbmm(q, d_scores, k, beta=0, alpha=D**-0.5).view(d_q.shape))
            d_k.copy_(torch.baddbmm(k, d_scores.mT, q, beta=0, alpha=D**-0.5).view(d_k.shape))
            d_v.copy_(torch.bmm(weights.mT, g).view(d_v.shape))
        return d_packed, d_bias, d_query
