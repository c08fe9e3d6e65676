"""Position encodings: Fourier features of the token grid, and resizing of learned grids."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tetravit.layers.cache import SizeCache
from tetravit.layers.plain import is_plain_module


class FourierPosition(nn.Module):
    """Sinusoids of the relative row and column, projected to the model's width.

    Rows and columns are normalized by the grid size, so the encoding fits any grid without resizing.

    Source: facebookresearch/xcit@82f5291 xcit.py, PositionalEncodingFourier.
    """

    def __init__(self, dim: int, num_frequencies: int = 32, temperature: float = 10000.0) -> None:
        super().__init__()
        self.num_frequencies, self.temperature = num_frequencies, temperature
        self.proj = nn.Conv2d(2 * num_frequencies, dim, 1)
        self._cache = SizeCache()

    def forward(self, grid: tuple[int, int]) -> Tensor:
        """Token grid (H, W) -> encodings (1, H * W, C)."""
        if not is_plain_module(self.proj):
            return self.proj(self.waves(grid).mT.unflatten(2, grid)).flatten(2).mT
        weight, bias = self.proj.weight, self.proj.bias
        assert bias is not None
        return self._cache.get(
            grid, (weight, bias), lambda: F.linear(self.waves(grid), weight.flatten(1), bias)
        )

    def waves(self, grid: tuple[int, int]) -> Tensor:
        """Fixed sinusoids (1, H * W, 2 * num_frequencies), rows first; in float32 until the last step."""
        weight, count = next(self.proj.parameters()), self.num_frequencies
        device = weight.device
        pairs = torch.arange(count // 2, device=device, dtype=torch.float32)
        frequencies = self.temperature ** (-2.0 * pairs / count)  # (F / 2,)
        axes = []
        for side in grid:
            steps = torch.arange(1, side + 1, device=device, dtype=torch.float32)
            angles = (steps * (2 * math.pi / (side + 1e-6)))[:, None] * frequencies  # (side, F / 2)
            axes.append(torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1))  # (side, F)
        rows, columns = axes
        rows = rows[:, None].expand(-1, grid[1], -1)
        columns = columns[None].expand(grid[0], -1, -1)
        return torch.cat((rows, columns), dim=-1).flatten(0, 1)[None].to(weight.dtype)


def resize_grid(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """A learned map (1, C, H, W) at another grid size, bicubic, in float32; unchanged at its own size.

    Source: the resizing of position embeddings in facebookresearch/deit, of bias tables in Swin's releases.
    """
    resized = F.interpolate(table.float(), size=grid, mode="bicubic", align_corners=False)
    if torch.compiler.is_exporting() and table.dtype != torch.float32:
        # Cast as tokens: a dynamic-shape graph cannot order the strides of a map.
        return resized.flatten(2).mT.contiguous().to(table.dtype).mT.unflatten(2, grid)
    return resized.to(table.dtype)
