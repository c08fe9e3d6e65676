"""Augmentations of images with label maps: random resizing, cropping, padding, photometric distortion.

Source: mmsegmentation 0.30.0: Resize with ratio_range, RandomCrop, PhotoMetricDistortion, Pad.
"""

from typing import Any

import torch
from PIL import Image
from torch import Tensor

from tetravit.data.geometry import Masks, crop, pad, resize, size_of
from tetravit.data.resizing import fitted
from tetravit.data.transforms.base import (
    Transform,
    chance,
    check_number,
    check_range,
    check_sides,
    check_size,
    from_pillow,
    randint,
    to_pillow,
    uniform,
)

IGNORE = 255  # label of ignored pixels
TRIES = 10
HSV = 256  # levels of Pillow's hue, saturation and value


class Rescale(Transform):
    """Resize to a random multiple of a size, keeping the ratio: bilinear without antialiasing; labels nearest.

    Args:
        short: maximum of the short side in pixels, times the sampled factor.
        longest: the same for the long side.
        ratio: the factor, (from, to).

    Raises:
        ValueError: for a size below 1, or an invalid range.
    """

    def __init__(
        self, short: int = 512, longest: int = 2048, ratio: tuple[float, float] = (0.5, 2.0)
    ) -> None:
        super().__init__()
        self.short = check_size("rescale", short)
        self.longest = check_size("rescale", longest)
        self.ratio = check_range("rescale", "ratio", ratio, 0.01, 100.0)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        factor = uniform(*self.ratio)
        height, width = size_of(flat_inputs[0])
        limits = (max(1, int(side * factor)) for side in (self.short, self.longest))
        return {"size": fitted((height, width), *limits)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return resize(inpt, params["size"], antialias=False)


class Cut(Transform):
    """Random crop of at most `size` pixels.

    Args:
        size: side in pixels, or (height, width); smaller images are kept whole.
        most: the crop is sampled again, up to ten times, while one class has this share of the labelled pixels or
            more.

    Raises:
        ValueError: for a size below 1, or a share outside 0..1.
    """

    def __init__(self, size: int | tuple[int, int], most: float = 0.75) -> None:
        super().__init__()
        self.size = check_sides("cut", size)
        self.most = check_number("cut", "most", most, 0.0, 1.0)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        labels = next((x.values for x in flat_inputs if _is_label_map(x)), None)
        box = self._box(flat_inputs)
        for _ in range(TRIES if labels is not None and self.most < 1 else 0):
            if labels is None or self._mixed(labels, box):
                break
            box = self._box(flat_inputs)
        return dict(zip(("top", "left", "height", "width"), box, strict=True))

    def _box(self, flat_inputs: list[Any]) -> tuple[int, int, int, int]:
        height, width = size_of(flat_inputs[0])
        h, w = min(self.size[0], height), min(self.size[1], width)
        return randint(height - h + 1), randint(width - w + 1), h, w

    def _mixed(self, labels: Tensor, box: tuple[int, int, int, int]) -> bool:
        """Whether a crop shows two classes or more, none of them above the maximum share."""
        top, left, h, w = box
        part = labels[top : top + h, left : left + w].flatten()
        counts = torch.bincount(part[(part >= 0) & (part != IGNORE)])
        return int((counts > 0).sum()) > 1 and int(counts.max()) < self.most * int(counts.sum())

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return crop(inpt, **params)


class Fill(Transform):
    """Pad a normalized image up to `size` with zeros on the right and bottom, its label map with 255."""

    normalized = True

    def __init__(self, size: int | tuple[int, int]) -> None:
        super().__init__()
        self.size = check_sides("fill", size)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = size_of(flat_inputs[0])
        return {"right": max(0, self.size[1] - width), "bottom": max(0, self.size[0] - height)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if not any(params.values()):
            return inpt
        return pad(inpt, 0, 0, **params, fill=IGNORE if _is_label_map(inpt) else 0)


class Distort(Transform):
    """Photometric distortion: brightness, contrast, saturation and hue, each with probability 0.5 (arXiv:1512.02325).

    Contrast is applied before saturation and hue, or after them.

    Args:
        brightness: maximum shift, in gray levels of 255.
        contrast: factor, (from, to).
        saturation: factor, (from, to).
        hue: maximum shift, in degrees / 2, as in OpenCV.

    Raises:
        ValueError: for a number outside its range.
    """

    colours = True

    def __init__(
        self,
        brightness: float = 32,
        contrast: tuple[float, float] = (0.5, 1.5),
        saturation: tuple[float, float] = (0.5, 1.5),
        hue: int = 18,
    ) -> None:
        super().__init__()
        self.brightness = check_number("distort", "brightness", brightness, 0.0, 255.0)
        self.contrast = check_range("distort", "contrast", contrast, 0.0, 100.0)
        self.saturation = check_range("distort", "saturation", saturation, 0.0, 100.0)
        self.hue = int(check_number("distort", "hue", hue, 0, 90))

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Sample the parameters; a factor of 1 and a shift of 0 are the identity."""
        return {
            "brightness": uniform(-self.brightness, self.brightness) if chance(0.5) else 0.0,
            "late": chance(0.5),
            "contrast": uniform(*self.contrast) if chance(0.5) else 1.0,
            "saturation": uniform(*self.saturation) if chance(0.5) else 1.0,
            "hue": randint(2 * self.hue) - self.hue if self.hue and chance(0.5) else 0,
        }

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if type(inpt) is not Tensor:  # label maps, boxes and masks are unchanged
            return inpt
        image = _levels(to_pillow(inpt.expand(3, -1, -1)), 1.0, params["brightness"])
        if not params["late"]:
            image = _levels(image, params["contrast"], 0.0)
        image = _hsv(image, params["saturation"], params["hue"])
        if params["late"]:
            image = _levels(image, params["contrast"], 0.0)
        return from_pillow(image.convert("L") if len(inpt) == 1 else image)


def _is_label_map(thing: Any) -> bool:
    return isinstance(thing, Masks) and thing.values.ndim == 2


def _levels(image: Image.Image, factor: float, shift: float) -> Image.Image:
    """Every value times `factor` plus `shift`, clamped to 0..255 and truncated."""
    if factor == 1.0 and shift == 0.0:
        return image
    table = [int(min(max(i * factor + shift, 0.0), 255.0)) for i in range(256)]
    return image.point(table * 3)


def _hsv(image: Image.Image, saturation: float, hue: int) -> Image.Image:
    """Saturation times a factor, and hue shifted by a number of 180ths of the circle."""
    if saturation == 1.0 and not hue:
        return image
    turn = round(hue * HSV / 180)
    h = [(i + turn) % HSV for i in range(HSV)]
    s = [int(min(i * saturation, 255.0)) for i in range(HSV)]
    return image.convert("HSV").point([*h, *s, *range(HSV)]).convert("RGB")


TRANSFORMS = {"rescale": Rescale, "cut": Cut, "fill": Fill, "distort": Distort}
