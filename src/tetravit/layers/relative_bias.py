"""Relative position bias: one learned value per offset of two tokens in a window (Liu et al. 2021, arXiv:2103.14030).

Shapes: w window side, N = w * w tokens, S = 2 * w - 1 offsets along an axis.
"""

import math

import torch
from torch import Tensor, nn

from tetravit.layers.cache import SizeCache
from tetravit.layers.init import trunc_normal_
from tetravit.layers.position import resize_grid


class RelativeBias(nn.Module):
    """One value per head and offset (rows first), expanded to all pairs of tokens.

    Only the table is stored: the indices follow from the window side, so there is no index buffer to save, to move or
    to lose on the meta device.

    Raises:
        ValueError: if `window_size` is below 1.
    """

    def __init__(self, window_size: int, num_heads: int) -> None:
        super().__init__()
        if window_size < 1:
            raise ValueError(f"A window side is at least 1 token; got window_size={window_size}.")
        self.window_size = window_size
        self.table = nn.Parameter(torch.empty((2 * window_size - 1) ** 2, num_heads))
        self._cache = SizeCache(entries=2)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        trunc_normal_(self.table, std=0.02)

    def forward(self, dtype: torch.dtype) -> Tensor:
        """The bias (heads, N, N) of query i for key j, in `dtype`."""
        return self._cache.get(dtype, (self.table,), lambda: spread(self.table, self.window_size).to(dtype))

    def extra_repr(self) -> str:
        return f"window_size={self.window_size}, num_heads={self.table.shape[1]}"


def spread(table: Tensor, window_size: int) -> Tensor:
    """Table (S * S, heads) -> bias (heads, N, N): entry (i, j) is for the offset of token i from token j."""
    w, side = window_size, 2 * window_size - 1
    offsets = table.mT.reshape(-1, side, side)  # (heads, S, S)
    pairs = offsets.unfold(1, w, 1).unfold(
        2, w, 1
    )  # (heads, row i, column i, w - 1 - row j, w - 1 - column j)
    return pairs.flip(3, 4).reshape(-1, w * w, w * w)


def resize_table(table: Tensor, window_size: int) -> Tensor:
    """A table (S * S, heads) trained with another window, for windows of `window_size`; bicubic, per head.

    Raises:
        ValueError: if the table does not belong to a square window.

    Source: NVlabs/GCVit@8e1941f, detection backbone (13 x 13 and 27 x 27 offsets become 47 x 47).
    """
    side = math.isqrt(len(table))
    if side**2 != len(table) or side % 2 == 0:
        raise ValueError(f"A bias table has (2 * window_size - 1) ** 2 rows; got {len(table)}.")
    maps = table.mT.reshape(1, -1, side, side)
    return resize_grid(maps, (2 * window_size - 1,) * 2).flatten(2)[0].mT.contiguous()
