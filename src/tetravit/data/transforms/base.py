"""Base classes of the augmentations: a fast path for single images, conversion to Pillow, argument checks.

An image is uint8 RGB (3, Hi, Wi) until `normalize` makes it float. All randomness comes from torch's global
generator.
"""

import math
from typing import Any, ClassVar, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tetravit.data.geometry import Boxes, Masks
from tetravit.data.resizing import Interpolation
from tetravit.registry import suggestion

INTERPOLATIONS = ("bicubic", "bilinear")


class Transform:
    """A transform of an image and of its `Boxes` and `Masks`.

    `make_params` samples parameters, `transform` applies them to each input. limits: maximum of the short and of the
    long side of the output, in pixels; None: unknown.
    """

    limits: tuple[int, int] | None = None
    colours: ClassVar[bool] = False  # True: for gray or RGB images only

    normalized: ClassVar[bool] = False  # True: takes the normalized float image, after `normalize`

    def __call__(self, *inputs: Any) -> Any:
        """Transform the image alone, or with boxes and masks (None: without); as many results as inputs."""
        given = [x for x in inputs if x is not None]
        self.check_inputs(given)
        params = self.make_params(given)
        changed = tuple(None if x is None else self.transform(x, params) for x in inputs)
        return changed if len(inputs) > 1 else changed[0]

    def check_inputs(self, flat_inputs: list[Any]) -> None:
        """Raises: ValueError for unsupported inputs."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Sample parameters for all inputs; the first is the image."""
        return {}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Transform one input with `params`."""
        raise NotImplementedError


class ImageTransform(Transform):
    """A transform of pixels without a counterpart for boxes and masks."""

    def check_inputs(self, flat_inputs: list[Any]) -> None:
        if any(isinstance(x, Boxes | Masks) for x in flat_inputs):
            raise ValueError(f"{type(self).__name__} moves pixels only; boxes and masks cannot follow it.")


class PillowTransform(ImageTransform):
    """A transform implemented with Pillow, as in the papers' code, in `pillow`. Gray images are converted to RGB."""

    colours = True

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if not isinstance(inpt, Tensor):
            return inpt
        changed = self.pillow(to_pillow(inpt.expand(3, -1, -1)), params)
        return from_pillow(changed.convert("L") if len(inpt) == 1 else changed)

    def pillow(self, image: Image.Image, params: dict[str, Any]) -> Image.Image:
        raise NotImplementedError


def to_pillow(image: Tensor) -> Image.Image:
    """uint8 (3, Hi, Wi) -> Pillow; no copy for a channels-last tensor."""
    return Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))


def from_pillow(image: Image.Image) -> Tensor:
    """Pillow RGB or gray -> uint8 (C, Hi, Wi), channels-last in memory."""
    array = torch.from_numpy(np.array(image))
    return array[None] if array.ndim == 2 else array.permute(2, 0, 1)


def uniform(low: float, high: float) -> float:
    """A uniform sample between `low` and `high`."""
    return low + (high - low) * float(torch.rand(()))


def chance(p: float) -> bool:
    """True with probability `p`."""
    return bool(torch.rand(()) < p)


def sign() -> int:
    """1 or -1."""
    return 1 if chance(0.5) else -1


def randint(high: int) -> int:
    """An integer in [0, high)."""
    return int(torch.randint(high, ()))


def check_probability(name: str, p: Any) -> float:
    """Raises: ValueError if `p` is not a number from 0 to 1."""
    if not _is_number(p) or not 0 <= p <= 1:
        raise ValueError(f"{name} takes a probability from 0 to 1; got {p!r}.")
    return float(p)


def check_size(name: str, size: Any) -> int:
    """Raises: ValueError if `size` is not a positive integer."""
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ValueError(f"{name} takes a size in pixels from 1 up; got {size!r}.")
    return size


def check_sides(name: str, size: Any) -> tuple[int, int]:
    """(height, width) of a size: one number for both sides, or two.

    Raises:
        ValueError: if it is neither.
    """
    if isinstance(size, (tuple, list)):
        if len(size) != 2:
            raise ValueError(f"{name} takes a size in pixels, or (height, width); got {size!r}.")
        return check_size(name, size[0]), check_size(name, size[1])
    return (check_size(name, size),) * 2


def check_range(name: str, quantity: str, value: Any, low: float, high: float) -> tuple[float, float]:
    """Raises: ValueError if `value` is not a pair (from, to) within `low`..`high`."""
    pair = isinstance(value, (tuple, list)) and len(value) == 2 and all(map(_is_number, value))
    if not pair or not low <= value[0] <= value[1] <= high:
        limits = f"{low:g} to {high:g}" if math.isfinite(high) else f"{low:g} up"
        raise ValueError(f"{name} takes {quantity} as (from, to), {limits}; got {value!r}.")
    return float(value[0]), float(value[1])


def check_number(name: str, quantity: str, value: Any, low: float, high: float = math.inf) -> float:
    """Raises: ValueError if `value` is not a number within `low`..`high`."""
    if not _is_number(value) or not low <= value <= high:
        limits = f"{low:g} to {high:g}" if math.isfinite(high) else f"{low:g} up"
        raise ValueError(f"{name} takes {quantity}, {limits}; got {value!r}.")
    return float(value)


def check_interpolation(name: str, value: Any) -> str:
    """Raises: ValueError if `value` is not bicubic, bilinear or random (either, per image)."""
    known = [*INTERPOLATIONS, "random"]
    if value not in known:
        raise ValueError(f"{name} has no interpolation {value!r}.{suggestion(str(value), known)}")
    return str(value)


def draw_interpolation(name: str) -> Interpolation:
    """The interpolation called `name`; for "random" one of the two."""
    if name == "random":
        name = ("bilinear", "bicubic")[randint(2)]
    return cast(Interpolation, name)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
