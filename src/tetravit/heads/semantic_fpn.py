"""Semantic FPN: a feature pyramid summed at its finest level, with per-pixel classification.

Kirillov et al. 2019, arXiv:1901.02446, Sec. 3. Source: mmsegmentation 0.30.0 FPNHead, with batch norm.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from tetravit.heads.parts.conv import ConvNorm, resize
from tetravit.heads.parts.fpn import FPN
from tetravit.heads.parts.pixels import Average, PixelHead

PYRAMID_WIDTH = 256


class SemanticFPN(PixelHead):
    """Upsample every level to the finest in steps of 2, and sum.

    width: channels of the sum. pyramid_width: channels of the pyramid; None: those of the maps if all are equal, as
    in XCiT's configurations, else 256, as in Twins'. Other options as in `PixelHead`.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        *,
        num_classes: int,
        width: int = 128,
        pyramid_width: int | None = None,
        dropout: float = 0.1,
        auxiliary: float = 0.0,
        average: Average = "all",
    ) -> None:
        super().__init__(
            channels, width, num_classes=num_classes, dropout=dropout, auxiliary=auxiliary, average=average
        )
        if pyramid_width is None:
            pyramid_width = channels[0] if len(set(channels)) == 1 else PYRAMID_WIDTH
        self.neck = FPN(channels, pyramid_width)
        self.levels = nn.ModuleList(_to_finest(pyramid_width, width, s // strides[0]) for s in strides)

    def features(self, maps: Sequence[Tensor]) -> Tensor:
        finest, *coarser = self.neck(maps)
        x: Tensor = self.levels[0](finest)
        for level, y in zip(self.levels[1:], coarser, strict=True):
            x = x + resize(level(y), x.shape[2:])
        return x


def _to_finest(channels: int, width: int, factor: int) -> nn.Sequential:
    """A convolution and an upsampling per factor of 2; at the finest level only a convolution."""
    steps: list[nn.Module] = [ConvNorm(channels, width, 3)]
    while factor > 1:
        steps.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
        factor //= 2
        if factor > 1:
            steps.append(ConvNorm(width, width, 3))
    return nn.Sequential(*steps)


HEADS = {"semantic_fpn": SemanticFPN}
