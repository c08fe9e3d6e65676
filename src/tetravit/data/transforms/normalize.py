"""From uint8 pixels to the normalized input of a model."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from tetravit.data.resizing import normalized, per_channel
from tetravit.data.transforms.base import Transform
from tetravit.structures import IMAGENET_MEAN, IMAGENET_STD


class Normalize(Transform):
    """uint8 (or float in [0, 1]) -> float32 (x - mean) / std per channel, x in [0, 1], contiguous."""

    normalized = True

    def __init__(self, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD) -> None:
        super().__init__()
        if len(mean) != len(std) or min(std) <= 0:
            raise ValueError(
                f"normalize takes one mean and one std above 0 per channel; got {mean!r}, {std!r}."
            )
        self.values = (tuple(map(float, mean)), tuple(map(float, std)))
        self.mean = per_channel(mean)
        self.std = per_channel(std)

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if type(inpt) is not Tensor:  # boxes and masks are unchanged
            return inpt
        return normalized(inpt, self.mean, self.std)


TRANSFORMS = {"normalize": Normalize}
