"""Measures and maps from attention records: non-locality, rollout, the mass mask, centres of positional heads.

Shapes: B images, H W grid of patches, N = H * W, T prefix tokens.
"""

import math
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from tetravit.backbones.convit import ConViT, PositionalAttention
from tetravit.backbones.deit import DeiT
from tetravit.layers.vit import SelfAttention
from tetravit.structures import AttentionMap, TokenAttention

Grid = tuple[int, int]
Record = AttentionMap | TokenAttention
PART_BYTES = 2**26  # of weights in memory at a time, without temporary copies
PATCHES = ("gated", "content", "position")  # kinds whose queries and keys are only patches


def distances(grid: Grid, device: torch.device | None = None, *, rows: slice = slice(None)) -> Tensor:
    """Distances between patches, in patches (N, N), float32; from the patches `rows` alone."""
    y, x = torch.cartesian_prod(
        *(torch.arange(side, device=device, dtype=torch.float32) for side in grid)
    ).unbind(1)
    return torch.hypot(y[rows, None] - y[None], x[rows, None] - x[None])


def uniform_non_locality(grid: Grid) -> float:
    """The mean distance of attention that is equal everywhere: 7.28076 patches for 14 x 14."""

    def steps(side: int) -> tuple[Tensor, Tensor]:
        """Distances along a side, and how many ordered pairs of patches have each."""
        apart = torch.arange(side, dtype=torch.float64)
        return apart, (side - apart) * torch.where(apart > 0, 2.0, 1.0)

    (dy, rows), (dx, columns) = map(steps, grid)
    lengths = torch.hypot(dy[:, None], dx[None])
    return float((lengths * rows[:, None] * columns[None]).sum() / (grid[0] * grid[1]) ** 2)


def non_locality(record: Record) -> Tensor:
    """The mean distance over which each head attends, in patches (heads,), over all queries and images.

    Records of kind "self": only patches, with rows renormalised over them. For grids of different sizes compare the
    ratio to `uniform_non_locality`. The weights of a `TokenAttention` are computed for a few queries at a time.

    Raises:
        ValueError: for other kinds than self, gated, content and position.

    Source: d'Ascoli et al. 2021, arXiv:2103.10697, eq. 8; the treatment of class tokens is ours.
    """
    return distances_and_mass(record)[0]


def distances_and_mass(record: Record) -> tuple[Tensor, float]:
    """`non_locality` of a record, and the mean share of the patches' attention that lies on tokens in front.

    Raises:
        ValueError: for other kinds than self, gated, content and position.
    """
    if record.kind not in ("self", *PATCHES):
        raise ValueError(
            f"Non-locality is for attention among patches of one grid; got kind {record.kind!r}."
        )
    count, total, outside = record.grid[0] * record.grid[1], torch.zeros(()), 0.0
    for start, stop in parts(record, record.prefix):
        weights = rows_of(record, start, stop)[..., record.prefix :]
        if record.prefix:
            sums = weights.sum(dim=-1, keepdim=True)
            outside += float((1 - sums).mean(dim=(0, 1)).sum())
            weights = weights / sums
        places = slice(start - record.prefix, stop - record.prefix)
        lengths = distances(record.grid, weights.device, rows=places)
        total = total.to(weights) + (weights * lengths).sum(dim=(-2, -1)).mean(dim=0)
    return total / count, outside / count


def rows_of(record: Record, start: int, stop: int) -> Tensor:
    """The weights of the queries from `start` to `stop` for all keys (B, heads, stop - start, T + N), float32."""
    if isinstance(record, TokenAttention):
        return record.rows(start, stop).float()
    return record.values[:, :, start:stop]


def parts(record: Record, first: int = 0) -> Iterator[tuple[int, int]]:
    """The queries of a record from `first` on, (start, stop) of parts whose weights take `PART_BYTES` at most."""
    tokens = record.prefix + record.grid[0] * record.grid[1]
    heads = record.heads if isinstance(record, TokenAttention) else record.values.shape[1]
    step = max(1, PART_BYTES // (4 * heads * tokens))
    for start in range(first, tokens, step):
        yield start, min(start + step, tokens)


def legacy_non_locality(backbone: ConViT | DeiT, images: Tensor) -> Tensor:
    """Non-locality as the authors' code logs it, (layers, heads): every layer for the raw embedding of the patches.

    Without positions, norms, class token and the layers before, so content heads are close to uniform attention
    regardless of their weights. For comparison with published curves; the paper defines `non_locality`.

    Source: facebookresearch/convit@0a9340a main.py and convit.py, `get_attention_map`.
    """
    x = backbone.patch_embed(images)  # (B, C, H, W)
    grid = (x.shape[2], x.shape[3])
    x = x.flatten(2).mT
    layers = []
    for i, block in enumerate(backbone.blocks):
        attn: nn.Module = block.attn  # type: ignore[assignment]
        if isinstance(attn, PositionalAttention):
            rows = partial(attn.rows, x, grid)
        else:
            assert isinstance(attn, SelfAttention)
            rows = partial(attn.rows, x)
        layers.append(non_locality(TokenAttention("self", f"blocks.{i}", grid, 0, attn.num_heads, rows)))
    return torch.stack(layers)


def rollout(
    records: Iterable[Record], *, heads: Literal["mean", "max", "min"] = "mean", discard: float = 0.0
) -> Tensor:
    """How much of each patch reaches the class token through all layers (B, H, W).

    Each layer is the average of its attention and the identity (residual), with rows that sum to 1. Computed from the
    class token's row of the last layer down, so that no matrix product is needed. In layers before the class token,
    patches attend to patches.

    Args:
        records: of kinds "gated" and "self", one per layer in order of depth, from
            `backbone.token_attention(images)`, with weights computed for a few queries at a time (with `discard` one
            layer at a time), or from `backbone.attention(images, kinds=["gated", "self"])`.
        heads: how heads are combined.
        discard: share of the lowest weights of each image and layer set to 0, in [0, 1).

    Raises:
        ValueError: for records of other kinds, a last layer without a class token, or `discard` out of range.

    Source: Abnar and Zuidema 2020, arXiv:2005.00928.
    """
    if not 0 <= discard < 1:
        raise ValueError(f"discard is a share in [0, 1); got {discard!r}.")
    layers = list(records)
    kinds = {record.kind for record in layers}
    if not layers or not kinds <= {"self", "gated"} or not layers[-1].prefix:
        known = ", ".join(sorted(kinds)) or "none"
        raise ValueError(
            f"Rollout is for layers of plain attention that end with a class token; got kinds {known}."
        )
    last = layers[-1]
    like = rows_of(last, 0, 1)
    row = torch.zeros_like(like[:, 0])  # (B, 1, T + N)
    row[:, :, 0] = 1
    for record in reversed(layers):
        if record.prefix < last.prefix:
            tokens, patches = row[:, :, : last.prefix], row[:, :, last.prefix :]
            row = torch.cat((tokens, _through(record, patches, heads, discard)), dim=-1)
        else:
            row = _through(record, row, heads, discard)
    return row[:, 0, last.prefix :].unflatten(1, last.grid)


def _through(record: Record, row: Tensor, heads: str, discard: float) -> Tensor:
    """The product of a row (B, 1, T + N) and the weights of a layer with its residual."""
    if discard:  # the lowest weights of the layer
        joined = torch.cat([_joined(rows_of(record, *part), heads) for part in parts(record)], dim=1)
        return row @ _halved(_without_lowest(joined, discard))
    total = torch.zeros_like(row)
    for start, stop in parts(record):
        weights = _halved(_joined(rows_of(record, start, stop), heads), start)
        total = total + row[:, :, start:stop] @ weights
    return total


def half_residual(weights: Tensor, heads: str, discard: float) -> Tensor:
    """Weights (B, heads, N, N) -> half of them, half of the identity, rows that sum to 1 (B, N, N)."""
    return _halved(_without_lowest(_joined(weights, heads), discard))


def _joined(weights: Tensor, heads: str) -> Tensor:
    """Rows of weights (B, heads, R, N) -> of all heads together (B, R, N)."""
    if heads == "mean":
        return weights.mean(dim=1)
    return weights.amax(dim=1) if heads == "max" else weights.amin(dim=1)


def _without_lowest(joined: Tensor, discard: float) -> Tensor:
    """Weights (B, N, N) with 0 in place of the lowest share of each image."""
    count = int(discard * joined[0].numel())
    if not count:
        return joined
    lowest = joined.flatten(1).topk(count, largest=False).indices
    return joined.flatten(1).scatter(1, lowest, 0.0).view_as(joined)


def _halved(rows: Tensor, first: int = 0) -> Tensor:
    """Rows of joined weights (B, R, N), the first of them of query `first` -> with the residual, rows sum to 1."""
    rows = rows.clone()
    rows.diagonal(first, dim1=1, dim2=2).add_(1)
    return rows / rows.sum(dim=-1, keepdim=True)


def mass_mask(values: Tensor, share: float = 0.6) -> Tensor:
    """True on the fewest patches that hold `share` of the weight (..., H, W); each map on its own.

    The patch at which the cumulative share is reached is kept; 1 keeps all.

    Raises:
        ValueError: for a share outside of (0, 1].

    Source: facebookresearch/dino@7c446df visualize_attention.py.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share is in (0, 1]; got {share!r}.")
    flat = values.flatten(-2).double()
    if share == 1:
        return torch.ones_like(values, dtype=torch.bool)
    ordered, places = flat.sort(dim=-1)
    below = (ordered / ordered.sum(dim=-1, keepdim=True)).cumsum(dim=-1)
    kept = below > 1 - share
    return torch.zeros_like(kept).scatter(-1, places, kept).view(values.shape)


def positional_heads(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where positional heads attend: centre, strength and deviation from `pos_proj.weight` (heads, 3).

    Returns:
        The centre (heads, 2), dx and dy from query to key in patches; the locality strength alpha (heads,); the
        standard deviation in patches (heads,). Centre and deviation are NaN for alpha <= 0: such a head attends most
        to the farthest patches.

    Source: d'Ascoli et al. 2021, arXiv:2103.10697, eq. 5.
    """
    strength = -weight[:, 2]
    alpha = torch.where(strength > 0, strength, math.nan)
    return weight[:, :2] / (2 * alpha[:, None]), strength, (2 * alpha).rsqrt()
