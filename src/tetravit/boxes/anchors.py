"""Anchor boxes of dense heads.

Shapes: A anchors per cell, (H, W) cells of one level, N = H * W * A in the order row, column, anchor.
Source: mmdet 2.28.2 AnchorGenerator: centred on (column * stride, row * stride), never rounded.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

ASPECT_RATIOS = (0.5, 1.0, 2.0)  # height / width


class AnchorGrid(nn.Module):
    """Feature maps -> anchors, one set per level.

    scales: sides of the square anchors, in strides of their level. Ratios vary slower than scales.
    """

    base: Tensor  # (levels, A, 4) around the origin

    def __init__(
        self, strides: Sequence[int], scales: Sequence[float], ratios: Sequence[float] = ASPECT_RATIOS
    ) -> None:
        super().__init__()
        self.strides = tuple(strides)
        self.num_anchors = len(scales) * len(ratios)
        tall = torch.tensor(ratios).sqrt()[:, None]
        scale = torch.tensor(scales)[None, :]
        levels = []
        for stride in self.strides:
            width, height = (stride / tall * scale).flatten(), (stride * tall * scale).flatten()
            levels.append(torch.stack((-width, -height, width, height), dim=1) / 2)
        self.register_buffer("base", torch.stack(levels), persistent=False)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Feature maps (B, C, H, W) -> anchors (N, 4) per level, in pixels of the padded batch."""
        levels = zip(maps, self.strides, self.base, strict=True)
        return [_grid(level.shape[-2], level.shape[-1], stride, base) for level, stride, base in levels]


def inside_padding(maps: Sequence[Tensor], strides: Sequence[int], height: int, width: int) -> list[Tensor]:
    """Mask of cells of each level that start within the first `height` rows and `width` columns: bool (H * W)."""
    flags = []
    for level, stride in zip(maps, strides, strict=True):
        rows = torch.arange(level.shape[-2], device=level.device) * stride < height
        columns = torch.arange(level.shape[-1], device=level.device) * stride < width
        flags.append((rows[:, None] & columns).flatten())
    return flags


def inside_image(anchors: Tensor, height: int, width: int, border: int) -> Tensor:
    """Mask of anchors (N, 4) that extend less than `border` pixels beyond the image: bool (N)."""
    x1, y1, x2, y2 = anchors.unbind(-1)
    return (x1 >= -border) & (y1 >= -border) & (x2 < width + border) & (y2 < height + border)


def _grid(height: int, width: int, stride: int, base: Tensor) -> Tensor:
    y, x = (torch.arange(side, device=base.device) * stride for side in (height, width))
    y, x = (corner.flatten() for corner in torch.broadcast_tensors(y[:, None], x))  # (H * W,)
    corner = torch.stack((x, y, x, y), dim=1).to(base.dtype)  # (H * W, 4)
    return (corner[:, None] + base).flatten(0, 1)
