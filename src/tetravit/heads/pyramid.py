"""Adapter: feature maps of any backbone -> four maps at strides 4, 8, 16, 32, as in the authors' dense releases.

Maps of single-stride backbones (XCiT, ConViT, DeiT) are resampled by transposed convolutions and pooling. Maps of
pyramids (GC ViT, Twins) pass unchanged, with a norm per level where the authors use one.

Source: facebookresearch/xcit@82f5291 detection/backbone/xcit.py (fpn1 to fpn4); NVlabs/GCVit detection (norm0 to
norm3); Meituan-AutoML/Twins@c1ff671 detection/gvt.py (norm_list).
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from tetravit.layers.batch_norm import BatchNorm

STRIDES = (4, 8, 16, 32)


class Pyramid(nn.Module):
    """Backbone maps -> one map per stride of (4, 8, 16, 32), with the same channels.

    map_norm: epsilon of a LayerNorm over the channels of each level; None: none.

    Raises:
        ValueError: unless there are four levels with strides that can be resampled.
    """

    def __init__(
        self, channels: Sequence[int], strides: Sequence[int], map_norm: float | None = None
    ) -> None:
        super().__init__()
        if len(channels) != 4 or any(s not in (4, 8, 16, 32) for s in strides):
            raise ValueError(
                f"A pyramid needs four levels with strides among 4, 8, 16, 32; got {tuple(strides)}."
            )
        self.channels, self.strides = tuple(channels), STRIDES
        self.levels = nn.ModuleList(
            _resample(c, s, t) for c, s, t in zip(channels, strides, STRIDES, strict=True)
        )
        self.norms = nn.ModuleList(MapNorm(c, eps=map_norm) if map_norm else nn.Identity() for c in channels)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        steps = zip(self.levels, self.norms, maps, strict=True)
        return [level(norm(x)) for level, norm, x in steps]


class MapNorm(nn.LayerNorm):
    """LayerNorm over the channels of a map (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Pool(nn.Module):
    """Max pooling with kernel and stride `size`."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, self.size, self.size)


def _resample(channels: int, stride: int, target: int) -> nn.Module:
    """From `stride` to `target`: a transposed convolution per doubling, with norm and GELU in between, or pooling."""
    if stride == target:
        return nn.Identity()
    if stride < target:
        return Pool(target // stride)
    layers: list[nn.Module] = []
    while stride > target:
        if layers:
            layers += [BatchNorm(channels), nn.GELU()]
        layers.append(nn.ConvTranspose2d(channels, channels, 2, stride=2))
        stride //= 2
    return nn.Sequential(*layers)
