"""Cross-covariance attention of many tokens, from the Gram matrix of its input.

Queries, keys and values are linear in the tokens x, and attention mixes channels. The products of queries and keys
therefore follow from G = x^T x, and values and output projection are one matrix per image:

    q^T k = Wq G Wk^T (+ bias terms),    proj(attn(v)) = x M + c,    M = sum over heads Wv^T A^T Wp^T.

This takes 2 N C^2 + 3 C^3 multiply-adds, the plain form 4 N C^2 + 2 N C D: fewer from N = 1.5 C on, half as many for
large images. G contains squared features, so its entries need about twice as many digits as the result: float32 or
more.

Shapes: B batch, N tokens, C width, D = C // heads.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

LEAST = 1.5  # tokens per channel from which this form has fewer operations, and was faster on CPUs


def plain_cross_covariance(
    x: Tensor, qkv: tuple[Tensor, Tensor], temperature: Tensor, proj: tuple[Tensor, Tensor]
) -> Tensor:
    """The plain form; arguments as in `gram_cross_covariance`."""
    heads = temperature.shape[0]
    q, k, v = (
        F.linear(x, *qkv).unflatten(2, (3, heads, -1)).permute(2, 0, 3, 4, 1).unbind()
    )  # (B, heads, D, N)
    attn = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT * temperature).softmax(dim=-1)
    return F.linear((attn @ v).permute(0, 3, 1, 2).flatten(2), *proj)


def gram_cross_covariance(
    x: Tensor, qkv: tuple[Tensor, Tensor], temperature: Tensor, proj: tuple[Tensor, Tensor]
) -> Tensor:
    """Cross-covariance attention with its output projection.

    Args:
        x: normed tokens (B, N, C).
        qkv: weight (3 C, C) and bias (3 C,) of queries, keys and values.
        temperature: (heads, 1, 1).
        proj: weight (C, C) and bias (C,) of the output projection.

    Returns:
        Projected tokens (B, N, C).
    """
    matrix, shift = gram_projection(x, qkv, temperature, proj)
    return torch.baddbmm(shift, x, matrix)


def gram_projection(
    x: Tensor, qkv: tuple[Tensor, Tensor], temperature: Tensor, proj: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """The matrix M (B, C, C) and the row c (B, 1, C) of the output x M + c; arguments as above."""
    attn = gram_weights(x, qkv, temperature)  # (B, heads, D, D)
    heads, C = temperature.shape[0], x.shape[2]
    wv, bv = qkv[0][2 * C :], qkv[1][2 * C :]
    # Values, attention and output projection in one matrix.
    wp = proj[0].view(C, heads, C // heads).permute(1, 2, 0)  # (heads, D, C)
    from_values = attn.mT @ wp  # (B, heads, D, C): from values to the output
    matrix = wv.mT @ from_values.flatten(1, 2)  # (B, C, C)
    shift = bv.view(1, C) @ from_values.flatten(1, 2) + proj[1]  # (B, 1, C)
    return matrix, shift


def gram_weights(x: Tensor, qkv: tuple[Tensor, Tensor], temperature: Tensor) -> Tensor:
    """The attention weights between channels (B, heads, D, D), rows for queries; arguments as above."""
    heads, (N, C) = temperature.shape[0], x.shape[1:]
    D = C // heads
    wq, wk, _ = qkv[0].view(3, heads, D, C).unbind()
    bq, bk, _ = qkv[1].view(3, heads, D, 1).unbind()
    gram = x.mT @ x  # (B, C, C)
    total = x.sum(dim=1)[:, None, :, None]  # (B, 1, C, 1)
    # Sums over the tokens of q k^T, q^2 and k^2, biases included.
    q_gram = wq.reshape(1, C, C) @ gram  # (B, C, C)
    k_gram = wk.reshape(1, C, C) @ gram
    q_sum, k_sum = wq @ total, wk @ total  # (B, heads, D, 1)
    cross = q_gram.unflatten(1, (heads, D)) @ wk.mT + q_sum @ bk.mT + bq @ k_sum.mT + N * (bq @ bk.mT)
    q_norm = _squares(q_gram, wq, q_sum, bq, N).sqrt().clamp_min(1e-12)
    k_norm = _squares(k_gram, wk, k_sum, bk, N).sqrt().clamp_min(1e-12)
    return (cross / (q_norm * k_norm.mT) * temperature).softmax(dim=-1)  # (B, heads, D, D)


def _squares(gram: Tensor, weight: Tensor, total: Tensor, bias: Tensor, count: int) -> Tensor:
    """Sums over tokens of squared features (B, heads, D, 1), from `gram` = weight G and `total` = weight sum(x)."""
    squares = (gram.unflatten(1, weight.shape[:2]) * weight).sum(dim=-1, keepdim=True)
    return (squares + 2 * bias * total + count * bias * bias).clamp_min(0)
