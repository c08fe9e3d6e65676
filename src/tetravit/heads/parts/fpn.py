"""Feature pyramid network: a top-down pathway adds coarse maps to finer ones (Lin et al. 2017, arXiv:1612.03144)."""

from collections.abc import Sequence
from typing import Literal, cast

from torch import Tensor, nn
from torch.nn import functional as F


class FPN(nn.Module):
    """Maps, fine to coarse -> as many with `width` channels each, plus up to two coarser ones.

    extra: "none"; "pool": one, by stride-2 subsampling of the coarsest; "conv": two, by 3 x 3 convolutions of stride
    2 from the last input map, without activation between them.
    Its tensors have the names of torchvision's FeaturePyramidNetwork.
    Source: mmdet 2.28.2 FPN (no norm, no activation, nearest upsampling).
    """

    def __init__(
        self, channels: Sequence[int], width: int = 256, *, extra: Literal["none", "pool", "conv"] = "none"
    ) -> None:
        super().__init__()
        self.inner_blocks, self.layer_blocks = nn.ModuleList(), nn.ModuleList()
        for c in channels:
            self.inner_blocks.append(nn.Sequential(nn.Conv2d(c, width, 1)))
            self.layer_blocks.append(nn.Sequential(nn.Conv2d(width, width, 3, padding=1)))
        for module in self.modules():
            if isinstance(
                module, nn.Conv2d
            ):  # same order of random numbers as torchvision, for equal weights from a seed
                nn.init.kaiming_uniform_(module.weight, a=1)
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
        x = self.inner_blocks[-1](maps[-1])
        levels = [self.layer_blocks[-1](x)]
        for i in range(len(maps) - 2, -1, -1):
            finer = self.inner_blocks[i](maps[i])
            x = finer + F.interpolate(x, size=finer.shape[-2:], mode="nearest")
            levels.insert(0, self.layer_blocks[i](x))
        if self.extra == "pool":
            levels.append(F.max_pool2d(levels[-1], 1, stride=2))
        if self.extra == "conv":
            x = maps[-1]
            for conv in self.coarser:
                x = conv(x)
                levels.append(x)
        return levels
