"""Feature pyramid network: coarse maps are added to finer ones (Lin et al. 2017, arXiv:1612.03144)."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal, cast

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FeaturePyramidNetwork


class FPN(FeaturePyramidNetwork):
    """Maps, fine to coarse -> as many of `width` channels each, and one or two coarser ones if asked.

    extra: "none"; "pool": one, every second cell of the coarsest; "conv": two, by 3 x 3 convolutions of stride 2
    from the last of the input maps, with nothing between them.
    Source: mmdet 2.28.2 FPN (no norm, no activation, nearest upsampling).
    """

    def __init__(
        self, channels: Sequence[int], width: int = 256, *, extra: Literal["none", "pool", "conv"] = "none"
    ) -> None:
        super().__init__(list(channels), width)
        self.extra = extra
        if extra == "conv":
            self.coarser = nn.ModuleList(
                nn.Conv2d(c, width, 3, stride=2, padding=1) for c in (channels[-1], width)
            )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(cast(Tensor, module.bias))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps (B, C, H, W) -> levels (B, width, H, W)."""
        levels = list(super().forward(OrderedDict((str(i), x) for i, x in enumerate(maps))).values())
        if self.extra == "pool":
            levels.append(F.max_pool2d(levels[-1], 1, stride=2))
        if self.extra == "conv":
            x = maps[-1]
            for conv in self.coarser:
                x = conv(x)
                levels.append(x)
        return levels
