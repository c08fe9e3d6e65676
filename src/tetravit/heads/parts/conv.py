"""Components on maps: convolution with norm, resizing, pooling."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tetravit.layers.batch_norm import BatchNorm
from tetravit.layers.plain import is_capturing, is_transformed


class ConvNorm(nn.Module):
    """Convolution without bias, batch norm, ReLU; the map keeps its size."""

    def __init__(self, channels: int, width: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, kernel, padding=kernel // 2, bias=False)
        self.norm = BatchNorm(width)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)), inplace=True)


def score_conv(width: int, num_classes: int) -> nn.Conv2d:
    """The 1 x 1 convolution from features to logits; initially all classes have about the same score."""
    conv = nn.Conv2d(width, num_classes, 1)
    nn.init.normal_(conv.weight, std=0.01)
    nn.init.zeros_(cast(Tensor, conv.bias))
    return conv


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Resize a map (B, C, H, W) to (height, width), bilinear; unchanged if it has that size."""
    if not torch.compiler.is_exporting() and tuple(x.shape[2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def pool_to(x: Tensor, bins: int) -> Tensor:
    """Adaptive average pooling: means (B, C, bins, bins) over regions that cover a map (B, C, H, W).

    Exported graphs use weighted sums over rows, then columns: runtimes support adaptive pooling only at fixed sizes.
    """
    if not torch.compiler.is_exporting():
        return F.adaptive_avg_pool2d(x, bins)
    x = (x[:, :, None] * _shares(x.shape[2], bins, x)[:, :, None]).sum(dim=3)  # (B, C, bins, W)
    return (x[:, :, :, None] * _shares(x.shape[3], bins, x)).sum(dim=4)


def _shares(side: int, bins: int, like: Tensor) -> Tensor:
    """Weight of each cell in each mean (bins, side): bin i covers floor(i s / n) to ceil((i + 1) s / n)."""
    cell, i = torch.arange(side, device=like.device), torch.arange(bins, device=like.device)[:, None]
    covered = (cell >= i * side // bins) & (cell < ((i + 1) * side + bins - 1) // bins)
    shares = covered.to(like.dtype)
    return shares / shares.sum(dim=1, keepdim=True)


class HalvingConv(nn.Conv2d):
    """A 3 x 3 convolution with padding 1; on CPUs as a matrix product of unfolded windows and weights.

    oneDNN accumulates all channels of a window sequentially, which loses a digit from 512 channels on.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__(channels, width, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or is_capturing() or is_transformed():
            return super().forward(x)
        windows = F.unfold(x, 3, padding=1, stride=2).transpose(1, 2)  # (B, h * w, C * 9)
        y = F.linear(windows, self.weight.flatten(1), self.bias).transpose(1, 2)
        return y.unflatten(2, [(side + 1) // 2 for side in x.shape[2:]])
