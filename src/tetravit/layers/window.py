"""Partition a channel-last map of any size into square windows, zero-padded, and back.

With known sizes this takes views and one copy. An exported dynamic-shape program must not compare sizes (divisibility
by 7, one window or more), so there both directions are a gather of tokens with indices computed inside the program.
The results are the same.

Shapes: B batch, H W token grid, Hp Wp the same padded to whole windows, C width, w window side, nW windows per image,
L = nW * w * w tokens in windows.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

Grid = tuple[int, int]


def windows(x: Tensor, size: int) -> tuple[Tensor, Grid]:
    """Partition a map into square windows, zero-padded on the right and bottom.

    Args:
        x: feature map (B, H, W, C).
        size: window side w, in tokens.

    Returns:
        Windows (B * nW, w * w, C), image by image and row by row; the padded grid (Hp, Wp) for `join`.

    Raises:
        ValueError: if `size` is below 1.

    Source: Twins, arXiv:2104.13840, locally-grouped self-attention; padding as in
    Meituan-AutoML/Twins@c1ff671 detection/gvt.py, so that detection sizes work.
    """
    if size < 1:
        raise ValueError(f"A window side is at least 1 token; got size={size}.")
    H, W = x.shape[1:3]
    rows, columns = _count((H, W), size)
    padded = (rows * size, columns * size)
    if _symbolic((H, W)):
        return _gather_windows(x, size), padded
    x = F.pad(x, (0, 0, 0, padded[1] - W, 0, padded[0] - H))  # (B, Hp, Wp, C)
    x = x.unflatten(2, (columns, size)).unflatten(1, (rows, size)).transpose(2, 3)  # (B, Hp/w, Wp/w, w, w, C)
    return x.flatten(3, 4).flatten(0, 2), padded


def join(windows: Tensor, size: int, padded: Grid, grid: Grid) -> Tensor:
    """Merge windows into a map and remove the padding: the inverse of `windows`.

    Args:
        windows: (B * nW, w * w, C), in the order returned by `windows`.
        size: window side w, in tokens.
        padded: grid (Hp, Wp) returned by `windows`.
        grid: grid (H, W) of the original map.

    Returns:
        Feature map (B, H, W, C).
    """
    if _symbolic(grid):
        return _gather_map(windows, size, grid)
    rows, columns = padded[0] // size, padded[1] // size
    x = windows.view(-1, rows, columns, size, size, windows.shape[-1]).transpose(
        2, 3
    )  # (B, Hp/w, w, Wp/w, w, C)
    return x.flatten(3, 4).flatten(1, 2)[:, : grid[0], : grid[1]]


def padding(windows: Tensor, size: int, grid: Grid) -> tuple[Tensor, Tensor]:
    """Masks of the window tokens below the map, and of those to its right: two (B * nW, w * w).

    Args:
        windows: (B * nW, w * w, C), as returned by `windows`.
        size: window side w, in tokens.
        grid: grid (H, W) of the original map.
    """
    row, column = _places(grid, size, windows.shape[0] * size**2, windows.device)
    return (row >= grid[0]).view(-1, size * size), (column >= grid[1]).view(-1, size * size)


def _symbolic(grid: Grid) -> bool:
    """Whether a dynamic-shape program is being exported, with symbolic sizes."""
    return torch.compiler.is_exporting() and not all(type(side) is int for side in grid)


def _places(grid: Grid, size: int, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Row and column in the padded map of the first `count` window tokens, image after image: two (count,)."""
    rows, columns = _count(grid, size)
    place = torch.arange(count, device=device)
    window, inside = _remainder(place // size**2, rows * columns), place % size**2
    row, column = window // columns, _remainder(window, columns)
    return row * size + inside // size, column * size + inside % size


def _remainder(x: Tensor, count: int) -> Tensor:
    """x % count for a possibly symbolic count: ONNX has no converter for that form."""
    return x - x // count * count


def _count(grid: Grid, size: int) -> Grid:
    """Number of windows along height and width."""
    return (grid[0] + size - 1) // size, (grid[1] + size - 1) // size


def _gather_windows(x: Tensor, size: int) -> Tensor:
    H, W, C = x.shape[1:]
    rows, columns = _count((H, W), size)
    row, column = _places((H, W), size, rows * columns * size**2, x.device)
    token = row.clamp(max=H - 1) * W + column.clamp(max=W - 1)
    inside = ((row < H) & (column < W)).to(x.dtype)
    x = x.flatten(1, 2).index_select(1, token) * inside[:, None]  # (B, L, C)
    return x.flatten(0, 1).view(-1, size * size, C)  # flatten first: a view must not compare B with B * nW


def _gather_map(x: Tensor, size: int, grid: Grid) -> Tensor:
    rows, columns = _count(grid, size)
    token = torch.arange(grid[0] * grid[1], device=x.device)
    row, column = token // grid[1], _remainder(token, grid[1])
    window = row // size * columns + column // size
    place = window * size**2 + row % size * size + column % size
    x = x.flatten(0, 1).view(-1, rows * columns * size**2, x.shape[-1])  # (B, L, C), flat first as above
    return x.index_select(1, place).unflatten(1, grid)
