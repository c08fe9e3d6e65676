"""RoI pooling of feature maps, and of masks as targets.

Shapes: R regions (image index, x1, y1, x2, y2); sizes in pixels of the padded batch.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from tetravit.kernels.vision import roi_align

FINEST_SIDE = (
    56  # pixels: regions with a (geometric mean) side below twice this are pooled from the finest level
)


def region_levels(boxes: Tensor, num_levels: int) -> Tensor:
    """The level for each box (..., 4): the finest for small boxes, one coarser per doubled side.

    Source: Feature Pyramid Networks, arXiv:1612.03144, eq. 1, as in mmdet 2.28.2 SingleRoIExtractor.
    """
    side = ((boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])).sqrt()
    return (side / FINEST_SIDE + 1e-6).log2().floor().clamp(0, num_levels - 1).long()


def pool_regions(maps: Sequence[Tensor], strides: Sequence[int], regions: Tensor, size: int) -> Tensor:
    """Maps (B, C, H, W) and regions (R, 5) -> features (R, C, size, size), each region pooled from its own level.

    In an exported graph, where shapes must not depend on data, every level pools all regions (with zero area for
    those of other levels); these results are replaced by 0, and the levels are summed.
    """
    level = region_levels(regions[:, 1:], len(maps))
    if not torch.compiler.is_exporting():
        return _pool_each(maps, strides, regions, size, level)
    pooled = []
    for i, (x, stride) in enumerate(zip(maps, strides, strict=True)):
        area = (level == i)[:, None].expand(-1, 4)
        here = regions * torch.cat((torch.ones_like(level)[:, None], area), dim=1)
        # A zero-area region gives 0 in PyTorch and ONNX Runtime, and NaN in OpenVINO.
        pooled.append(torch.where((level == i)[:, None, None, None], _pool(x, here, size, stride), 0))
    return torch.stack(pooled).sum(dim=0)


def _pool_each(
    maps: Sequence[Tensor], strides: Sequence[int], regions: Tensor, size: int, level: Tensor
) -> Tensor:
    """Every level pools its own regions only; levels without regions contribute an empty result."""
    rows = [(level == i).nonzero().flatten() for i in range(len(maps))]
    pooled = [
        _pool(x, regions[row], size, stride) for x, row, stride in zip(maps, rows, strides, strict=True)
    ]
    return torch.cat(pooled)[torch.cat(rows).argsort()]


def _pool(x: Tensor, regions: Tensor, size: int, stride: int) -> Tensor:
    """In float32 for every dtype: 16 bits cannot represent a fraction of a pixel near position 1000."""
    pooled = roi_align(x.float(), regions.float(), size, 1 / stride)
    return pooled.to(x.dtype)


def crop_masks(masks: Tensor, rows: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Masks (M, Hi, Wi) and boxes (R, 4) on the masks `rows` (R,) -> 0 or 1 targets (R, size, size)."""
    regions = torch.cat((rows[:, None].to(boxes), boxes), dim=1)
    share = roi_align(masks[:, None].to(boxes), regions, size, 1.0)
    return (share[:, 0] >= 0.5).to(boxes)
