"""UPerNet: pyramid pooling on the coarsest map, a top-down pyramid, and fusion of all levels.

Xiao et al. 2018, arXiv:1807.10221. Source: mmsegmentation 0.30.0 UPerHead.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tetravit.heads.parts.conv import ConvNorm, pool_to, resize
from tetravit.heads.parts.pixels import Average, PixelHead


class UPerNet(PixelHead):
    """Pyramid pooling on the coarsest map, and an FPN with fused levels.

    width: channels of every level. bins: output sizes of the pyramid pooling.
    Other options as in `PixelHead`; the published models were trained with `auxiliary=0.4`.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        *,
        num_classes: int,
        width: int = 512,
        bins: Sequence[int] = (1, 2, 3, 6),
        dropout: float = 0.1,
        auxiliary: float = 0.0,
        average: Average = "all",
    ) -> None:
        super().__init__(
            channels, width, num_classes=num_classes, dropout=dropout, auxiliary=auxiliary, average=average
        )
        *finer, coarsest = channels
        self.bins = tuple(bins)
        self.pools = nn.ModuleList(ConvNorm(coarsest, width, 1) for _ in bins)
        self.bottleneck = ConvNorm(coarsest + len(self.bins) * width, width, 3)
        self.laterals = nn.ModuleList(ConvNorm(c, width, 1) for c in finer)
        self.smooth = nn.ModuleList(ConvNorm(width, width, 3) for _ in finer)
        self.fuse = ConvNorm(len(channels) * width, width, 3)

    def features(self, maps: Sequence[Tensor]) -> Tensor:
        *finer, coarsest = maps
        levels = [self._pool(coarsest)]
        for lateral, x in zip(reversed(self.laterals), reversed(finer), strict=True):
            levels.insert(0, lateral(x) + resize(levels[0], x.shape[2:]))
        smoothed = [conv(x) for conv, x in zip(self.smooth, levels[:-1], strict=True)]
        size = levels[0].shape[2:]
        return self.fuse(torch.cat([resize(x, size) for x in (*smoothed, levels[-1])], dim=1))

    def _pool(self, x: Tensor) -> Tensor:
        """The coarsest map concatenated with its pooled means -> (B, width, H, W)."""
        means = [pool(pool_to(x, n)) for pool, n in zip(self.pools, self.bins, strict=True)]
        return self.bottleneck(torch.cat([x, *(resize(m, x.shape[2:]) for m in means)], dim=1))


HEADS = {"upernet": UPerNet}
