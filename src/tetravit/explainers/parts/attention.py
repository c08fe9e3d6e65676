"""Measures and maps from attention records: non-locality, rollout, the mass mask, centres of positional heads.

Shapes: B images, H W grid of patches, N = H * W, T tokens in front of them.
"""

import math
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn

from tetravit.backbones.convit import ConViT, PositionalAttention
from tetravit.backbones.deit import DeiT
from tetravit.layers.vit import SelfAttention
from tetravit.structures import AttentionMap

Grid = tuple[int, int]
PATCHES = ("gated", "content", "position")  # kinds whose queries and keys are patches alone


def distances(grid: Grid, device: torch.device | None = None) -> Tensor:
    """Distances between patches, in patches (N, N), float32."""
    places = torch.cartesian_prod(*(torch.arange(side, device=device, dtype=torch.float32) for side in grid))
    return torch.linalg.vector_norm(places[:, None] - places[None], dim=-1)


def uniform_non_locality(grid: Grid) -> float:
    """The mean distance of attention that is equal everywhere: 7.28076 patches for 14 x 14."""
    return float(distances(grid).double().mean())


def non_locality(record: AttentionMap) -> Tensor:
    """The mean distance over which each head attends, in patches (heads,), over all queries and images.

    Records of kind "self": patches alone, their rows divided by their sums; `record.seen` has the share that this
    leaves out. Grids of different sizes compare by the ratio to `uniform_non_locality`.

    Raises:
        ValueError: for other kinds than self, gated, content and position.

    Source: d'Ascoli et al. 2021, arXiv:2103.10697, eq. 8; which tokens count in layers with a class token is ours.
    """
    if record.kind not in ("self", *PATCHES):
        raise ValueError(
            f"Non-locality is for attention among patches of one grid; got kind {record.kind!r}."
        )
    weights = record.values[:, :, record.prefix :, record.prefix :]
    if record.prefix:
        weights = weights / weights.sum(dim=-1, keepdim=True)
    return (weights * distances(record.grid, weights.device)).sum(dim=-1).mean(dim=(0, 2))


def legacy_non_locality(backbone: ConViT | DeiT, images: Tensor) -> Tensor:
    """Non-locality as the authors' code logs it, (layers, heads): every layer for the raw embedding of the patches.

    Without positions, norms, class token and the layers before, so content heads lie near equal attention whatever
    they learned. For comparison with published curves; `non_locality` is what the paper defines.

    Source: facebookresearch/convit@0a9340a main.py and convit.py, `get_attention_map`.
    """
    x = backbone.patch_embed(images)  # (B, C, H, W)
    grid = (x.shape[2], x.shape[3])
    x = x.flatten(2).mT
    rows = []
    for block in backbone.blocks:
        attn: nn.Module = block.attn  # type: ignore[assignment]
        if isinstance(attn, PositionalAttention):
            weights = attn.attention(x, grid)
        else:
            assert isinstance(attn, SelfAttention)
            weights = attn.attention(x)
        rows.append((weights.mean(dim=0) * distances(grid, x.device)).sum(dim=-1).mean(dim=-1))
    return torch.stack(rows)


def rollout(
    records: Iterable[AttentionMap], *, heads: Literal["mean", "max", "min"] = "mean", discard: float = 0.0
) -> Tensor:
    """How much of each patch reaches the class token through all layers (B, H, W).

    Each layer counts half for its attention and half for its residual, rows sum to 1. From the class token's row of
    the last layer down, so no product of two matrices is formed. In layers before the class token joins, patches
    attend to patches.

    Args:
        records: of kinds "gated" and "self", one per layer in order of depth, as
            `backbone.attention(images, kinds=["gated", "self"])` returns them.
        heads: how heads are joined.
        discard: share of the lowest weights of each image and layer that are left out, in [0, 1).

    Raises:
        ValueError: for records of other kinds, a last layer without a class token, or `discard` out of range.

    Source: Abnar and Zuidema 2020, arXiv:2005.00928.
    """
    if not 0 <= discard < 1:
        raise ValueError(f"discard is a share in [0, 1); got {discard!r}.")
    layers: list[
        tuple[int, Tensor]
    ] = []  # tokens in front, joined weights (B, T + N, T + N): heads are not kept
    kinds, last = set(), None
    for record in records:
        kinds.add(record.kind)
        if record.kind in ("self", "gated"):
            layers.append((record.prefix, half_residual(record.values, heads, discard)))
        last = record
    if last is None or not kinds <= {"self", "gated"} or not last.prefix:
        known = ", ".join(sorted(kinds)) or "none"
        raise ValueError(
            f"Rollout is for layers of plain attention that end with a class token; got kinds {known}."
        )
    row = last.values.new_zeros(last.values.shape[0], 1, last.values.shape[-1])
    row[:, :, 0] = 1  # (B, 1, T + N)
    for prefix, weights in reversed(layers):
        if prefix < last.prefix:
            tokens, row = row[:, :, : last.prefix], row[:, :, last.prefix :]
            row = torch.cat((tokens, row @ weights), dim=-1)
        else:
            row = row @ weights
    return row[:, 0, last.prefix :].unflatten(1, last.grid)


def half_residual(weights: Tensor, heads: str, discard: float) -> Tensor:
    """Weights (B, heads, N, N) -> half of them, half of the identity, rows that sum to 1 (B, N, N)."""
    if heads == "mean":
        joined = weights.mean(dim=1)
    else:
        joined = weights.amax(dim=1) if heads == "max" else weights.amin(dim=1)
    count = int(discard * joined[0].numel())
    if count:
        lowest = joined.flatten(1).topk(count, largest=False).indices
        joined = joined.flatten(1).scatter(1, lowest, 0.0).view_as(joined)
    joined = joined + torch.eye(joined.shape[-1], device=joined.device)
    return joined / joined.sum(dim=-1, keepdim=True)


def mass_mask(values: Tensor, share: float = 0.6) -> Tensor:
    """True on the fewest patches that hold `share` of the weight (..., H, W); each map on its own.

    The patch that crosses the share is kept; 1 keeps all.

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
        standard deviation in patches (heads,). Centre and deviation are NaN where alpha <= 0: such a head attends
        the more the farther.

    Source: d'Ascoli et al. 2021, arXiv:2103.10697, eq. 5.
    """
    strength = -weight[:, 2]
    alpha = torch.where(strength > 0, strength, math.nan)
    return weight[:, :2] / (2 * alpha[:, None]), strength, (2 * alpha).rsqrt()
