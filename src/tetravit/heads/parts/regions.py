"""RoI branches: class and box, and mask.

Shapes: R regions, K classes.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tetravit.heads.parts.dense import start_small
from tetravit.layers.batch_norm import BatchNorm


class BoxBranch(nn.Module):
    """Region features (R, C, 7, 7) -> logits (R, K + 1), background last, and per-class offsets (R, K, 4).

    num_convs: 3 x 3 convolutions with batch norm before the `num_layers` linear ones.
    """

    def __init__(
        self, width: int, num_classes: int, *, num_convs: int = 0, num_layers: int = 2, dim: int = 1024
    ):
        super().__init__()
        self.convs = nn.ModuleList(_normed(width) for _ in range(num_convs))
        layers = [nn.Linear(dim if i else width * 49, dim) for i in range(num_layers)]
        self.layers = nn.ModuleList(layers)
        self.score = nn.Linear(dim, num_classes + 1)
        self.delta = nn.Linear(dim, 4 * num_classes)
        for layer in layers:
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        start_small(self.score)
        start_small(self.delta, std=0.001)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for conv in self.convs:
            x = F.relu(conv(x))
        x = x.flatten(1)
        for layer in self.layers:
            x = F.relu(layer(x))
        return self.score(x), self.delta(x).unflatten(1, (-1, 4))


class MaskBranch(nn.Module):
    """Region features (R, C, 14, 14) -> mask logits per class (R, K, 28, 28)."""

    def __init__(self, width: int, num_classes: int, *, num_convs: int = 4) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(num_convs))
        self.upsample = nn.ConvTranspose2d(width, width, 2, stride=2)
        self.score = nn.Conv2d(width, num_classes, 1)
        for layer in (*self.convs, self.upsample, self.score):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = F.relu(conv(x))
        return self.score(F.relu(self.upsample(x)))


def of_class(x: Tensor, labels: Tensor) -> Tensor:
    """Select the entry of (R, K, ...) for the class of each region, `labels` (R,) -> (R, ...)."""
    return x[torch.arange(x.shape[0], device=x.device), labels]


def _normed(width: int) -> nn.Sequential:
    conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, BatchNorm(width))
