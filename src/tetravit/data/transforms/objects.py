"""Augmentations of images with objects: resize within limits, multi-scale resize and crop.

Sizes are pixels. Boxes and masks follow the image; objects cropped away entirely are removed (`data.prepare`).

Source: mmdetection 2.28.2: Resize, RandomCrop with absolute_range, AutoAugment of the configurations with 36 epochs.
"""

from collections.abc import Sequence
from typing import Any

from tetravit.data.geometry import crop, resize, size_of
from tetravit.data.resizing import fitted
from tetravit.data.transforms.base import Transform, chance, check_probability, check_size, randint

SHORT = tuple(range(480, 801, 32))


class Fit(Transform):
    """Resize so that the short side is at most `short` and the long side at most `longest`: bilinear, not
    antialiased.

    Raises:
        ValueError: for a size below 1.
    """

    def __init__(self, short: int = 800, longest: int = 1333) -> None:
        super().__init__()
        self.short = check_size("fit", short)
        self.longest = check_size("fit", longest)
        self.limits = (min(short, longest), longest)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = size_of(flat_inputs[0])
        return {"size": fitted((height, width), self.short, self.longest)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return _resized(inpt, params["size"])


class MultiScale(Transform):
    """Resize to a random size; with probability `p` first resize, take a random crop, and resize that.

    Args:
        short: candidate short sides of the result.
        longest: maximum of the long side.
        before: candidate short sides before the crop.
        cut: sides of the crop, (from, to), each sampled independently; at most those of the image.
        p: probability of the crop.

    Raises:
        ValueError: for sizes below 1, an empty list, or an invalid probability.
    """

    def __init__(
        self,
        short: Sequence[int] = SHORT,
        longest: int = 1333,
        before: Sequence[int] = (400, 500, 600),
        cut: Sequence[int] = (384, 600),
        p: float = 0.5,
    ) -> None:
        super().__init__()
        self.short, self.before, self.cut = (
            _sizes(name, value) for name, value in (("short", short), ("before", before), ("cut", cut))
        )
        if len(self.cut) != 2 or self.cut[0] > self.cut[1]:
            raise ValueError(f"multiscale takes cut as (from, to); got {tuple(cut)!r}.")
        self.longest = check_size("multiscale", longest)
        self.limits = (min(max(self.short), longest), longest)
        self.p = check_probability("multiscale", p)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = size_of(flat_inputs[0])
        size = self._size((height, width), self.short)
        if not chance(self.p):
            return {"first": size, "part": None, "size": None}
        first = height, width = self._size((height, width), self.before)
        low, high = self.cut
        h, w = (min(side, low) + randint(min(side, high) - min(side, low) + 1) for side in (height, width))
        top, left = randint(height - h + 1), randint(width - w + 1)
        return {"first": first, "part": (top, left, h, w), "size": self._size((h, w), self.short)}

    def _size(self, size: tuple[int, int], choices: Sequence[int]) -> tuple[int, int]:
        return fitted(size, choices[randint(len(choices))], self.longest)

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        inpt = _resized(inpt, params["first"])
        if params["part"] is None:
            return inpt
        return _resized(crop(inpt, *params["part"]), params["size"])


def _resized(inpt: Any, size: tuple[int, int]) -> Any:
    return resize(inpt, size, antialias=False)


def _sizes(name: str, values: Any) -> tuple[int, ...]:
    if not isinstance(values, (tuple, list, range)) or not values:
        raise ValueError(f"multiscale takes {name} as sizes in pixels (480, 512, ...); got {values!r}.")
    return tuple(check_size("multiscale", value) for value in values)


TRANSFORMS = {"fit": Fit, "multiscale": MultiScale}
