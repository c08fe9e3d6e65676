"""Layers of the plain vision transformer (Dosovitskiy et al. 2021, arXiv:2010.11929), shared by ConViT and DeiT.

Shapes: B batch, H W token grid, N tokens, C width, D = C // heads.
"""

import math
from collections.abc import Iterator
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tetravit.layers.cache import SizeCache
from tetravit.layers.drop_path import DropPath
from tetravit.layers.heads import to_heads
from tetravit.layers.mlp import Mlp, add_mlp
from tetravit.layers.plain import is_capturing, is_plain_module
from tetravit.layers.position import resize_grid
from tetravit.layers.residual import add_linear, drawn
from tetravit.layers.selective_recompute import recomputable_norm
from tetravit.structures import AttentionKind, AttentionMap

Grid = tuple[int, int]

OUT_BLOCKS = {
    12: (3, 5, 7, 11),
    24: (7, 11, 15, 23),
}  # depth: indices of the blocks whose outputs are feature maps, as in XCiT


class PatchEmbed(nn.Conv2d):
    """Linear patch embedding: images -> (B, C, ceil(Hi / patch_size), ceil(Wi / patch_size)).

    Images are zero-padded (the mean colour of a normalized image) on the right and bottom to whole patches, so that
    every pixel counts. The constructor has the signature of `nn.Conv2d`: tools that replace layers rely on it;
    `of_size` is the usual constructor.
    """

    @classmethod
    def of_size(cls, in_chans: int, dim: int, patch_size: int) -> Self:
        """Non-overlapping patches.

        Raises:
            ValueError: if `patch_size` is below 1.
        """
        if patch_size < 1:
            raise ValueError(f"patch_size is 1 pixel or more; got {patch_size!r}.")
        return cls(in_chans, dim, patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        rows, columns = self.grid((height, width))
        padding = (0, columns * self.stride[1] - width, 0, rows * self.stride[0] - height)
        return super().forward(F.pad(images, padding))

    def grid(self, image_size: int | tuple[int, int]) -> Grid:
        """Rows and columns of patches in an image of this side, or (height, width)."""
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        # Sizes may be symbolic: torch.compile cannot lower the modulo or the quotient of a negative one.
        return (height + self.stride[0] - 1) // self.stride[0], (width + self.stride[1] - 1) // self.stride[1]


class LearnedPosition(nn.Module):
    """Learned position embeddings, one per cell of a token grid; resized to other grids by bicubic interpolation.

    grid: the (H, W) of the learned embeddings; there they are used unchanged.
    num_prefix: additional embeddings of prefix tokens, never resized.

    Source: facebookresearch/deit README, "Fine-tuning": bicubic interpolation of the position embeddings.
    """

    def __init__(self, dim: int, grid: Grid, num_prefix: int = 0) -> None:
        super().__init__()
        self.grid, self.num_prefix = grid, num_prefix
        self.table = nn.Parameter(torch.zeros(1, num_prefix + grid[0] * grid[1], dim))
        self._cache = SizeCache()

    def forward(self, grid: Grid) -> Tensor:
        """Token grid (H, W) -> position embeddings (1, num_prefix + H * W, C)."""
        if not is_capturing() and grid == self.grid:  # a dynamic-shape program must not compare sizes
            return self.table
        return self._cache.get(grid, (self.table,), lambda: self._resize(self.table, self.grid, grid))

    def fit(self, table: Tensor, grid: Grid | None = None) -> Tensor:
        """Resize a table (1, num_prefix + N, C) learned for another `grid` to the grid of this module.

        Raises:
            ValueError: if the table does not match that grid; None: a square grid.
        """
        if grid is not None:
            if table.shape[1] != self.num_prefix + grid[0] * grid[1]:
                raise ValueError(
                    f"A table of positions for {grid[0]} x {grid[1]} cells has"
                    f" {self.num_prefix + grid[0] * grid[1]} rows; got {table.shape[1]}."
                )
            return self._resize(table, grid, self.grid)
        side = math.isqrt(table.shape[1] - self.num_prefix)
        if side * side != table.shape[1] - self.num_prefix:
            raise ValueError(
                f"A table of positions has n * n + {self.num_prefix} rows for a square grid; got {table.shape[1]}."
            )
        return self._resize(table, (side, side), self.grid)

    def _resize(self, table: Tensor, old: Grid, new: Grid) -> Tensor:
        prefix, cells = table[:, : self.num_prefix], table[:, self.num_prefix :]
        cells = resize_grid(cells.mT.unflatten(2, old), new).flatten(2).mT  # via (1, C, H, W)
        return torch.cat((prefix, cells), dim=1)

    def extra_repr(self) -> str:
        return f"grid={self.grid}, num_prefix={self.num_prefix}"


class ClassToken(nn.Module):
    """Prepend a learned token to the patches: (B, N, C) -> (B, 1 + N, C)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, dim))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.token.expand(x.shape[0], -1, -1), x), dim=1)


class SelfAttention(nn.Module):
    """Multi-head self-attention over all tokens.

    Raises:
        ValueError: for a width not divisible by the heads.
    """

    def __init__(self, dim: int, num_heads: int, *, qkv_bias: bool) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim must be a multiple of num_heads; got dim={dim}, num_heads={num_heads}.")
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, num_queries: int | None = None) -> Tensor:
        """Tokens (B, N, C) -> (B, N, C); with `num_queries`, outputs of the first tokens only."""
        return self.proj(self.attend(x, num_queries))

    def attend(self, x: Tensor, num_queries: int | None = None) -> Tensor:
        """Attention without the output projection."""
        if num_queries is None or not is_plain_module(self.qkv):
            q, k, v = to_heads(x, self.qkv, 3, self.num_heads)
            q = q[:, :, :num_queries]
        else:
            dim, bias = x.shape[2], self.qkv.bias
            split = (None, None) if bias is None else (bias[:dim], bias[dim:])
            (q,) = self._heads(x[:, :num_queries], self.qkv.weight[:dim], split[0])
            k, v = self._heads(x, self.qkv.weight[dim:], split[1])
        x = F.scaled_dot_product_attention(q, k, v)  # (B, heads, N, D)
        return x.transpose(1, 2).flatten(2)

    def attention(self, x: Tensor) -> Tensor:
        """Tokens (B, N, C) -> the attention weights (B, heads, N, N), rows for queries."""
        q, k, _ = to_heads(x, self.qkv, 3, self.num_heads)
        return (q @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1)

    def rows(self, x: Tensor, start: int, stop: int) -> Tensor:
        """Attention weights of the queries `start` to `stop` (B, heads, stop - start, N)."""
        q, k, _ = to_heads(x, self.qkv, 3, self.num_heads)
        return (q[:, :, start:stop] @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1)

    def values(self, x: Tensor) -> Tensor:
        """Tokens (B, N, C) -> their values (B, heads, N, D)."""
        return to_heads(x, self.qkv, 3, self.num_heads)[2]

    def _heads(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, ...]:
        """The projections whose rows are in `weight`, each (B, heads, N, D)."""
        parts = F.linear(x, weight, bias).unflatten(2, (-1, self.num_heads, x.shape[2] // self.num_heads))
        return parts.permute(2, 0, 3, 1, 4).unbind()


def attention_records(
    attn: SelfAttention,
    x: Tensor,
    kinds: frozenset[AttentionKind],
    *,
    layer: str,
    grid: Grid,
    stride: int,
    prefix: int,
) -> Iterator[AttentionMap]:
    """Attention maps of a layer for its input, normed tokens (B, T + N, C): all rows, and the class token's row."""
    if not kinds & {"self", "class"}:
        return
    centre = (stride - 1) / 2
    weights = (
        attn.attention(x) if "self" in kinds else attn.rows(x, 0, 1)
    ).float()  # (B, heads, T + N or 1, T + N)
    seen = weights[..., prefix:].sum(dim=-1)
    if "self" in kinds:
        yield AttentionMap("self", layer, weights, seen, grid, stride, centre, prefix=prefix)
    if "class" in kinds:
        row = weights[:, :, 0, prefix:].unflatten(2, grid)
        yield AttentionMap("class", layer, row, seen[:, :, 0], grid, stride, centre)


class Block(nn.Module):
    """A transformer block: attention, then MLP, each pre-norm with a residual."""

    def __init__(self, dim: int, num_heads: int, *, qkv_bias: bool, drop_path: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn = SelfAttention(dim, num_heads, qkv_bias=qkv_bias)
        self.mlp = Mlp(dim, 4 * dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, num_queries: int | None = None) -> Tensor:
        """Tokens (B, N, C) -> the output of the block; with `num_queries`, of the first tokens only."""
        first = x[:, :num_queries]
        if type(self.attn) is SelfAttention and is_plain_module(self.attn):
            draw = drawn(x, self.drop_path, self.norm1, self.attn)
            normed = recomputable_norm(self.norm1, x if draw is None else draw.of(x))
            attended = self.attn.attend(normed, num_queries)
            x = add_linear(first, self.attn.proj, attended, self.drop_path, draw=draw)
        else:
            normed = recomputable_norm(self.norm1, x)
            attended = self.attn(normed) if num_queries is None else self.attn(normed, num_queries)
            x = first + self.drop_path(attended)
        return add_mlp(x, self.mlp, self.norm2, self.drop_path)
