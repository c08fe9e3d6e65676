"""Crop and resize: random crops for training, resizing and centre crops for evaluation."""

import math
from typing import Any

from tetravit.data.geometry import center_crop, crop, pad, resize, resized_crop, size_of
from tetravit.data.transforms.base import (
    Transform,
    check_interpolation,
    check_range,
    check_sides,
    check_size,
    draw_interpolation,
    randint,
    uniform,
)

ATTEMPTS = 10


class RandomResizedCrop(Transform):
    """A random resized crop (Szegedy et al. 2014, as in timm).

    Args:
        size: side of the result, or (height, width).
        scale: area of the crop as a share of the image, (from, to).
        ratio: width / height of the crop, (from, to), log-uniform.
        interpolation: "bicubic", "bilinear" or "random" (either, per image).

    Raises:
        ValueError: for a size below 1, an invalid range, or an unknown interpolation.
    """

    def __init__(
        self,
        size: int | tuple[int, int],
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        interpolation: str = "bicubic",
    ) -> None:
        super().__init__()
        self.size = check_sides("crop", size)
        self.scale = check_range("crop", "scale", scale, 0.0, 1.0)
        self.ratio = check_range("crop", "ratio", ratio, 0.01, 100.0)
        self.interpolation = check_interpolation("crop", interpolation)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = size_of(flat_inputs[0])
        top, left, h, w = self._box(height, width)
        return {
            "top": top,
            "left": left,
            "height": h,
            "width": w,
            "interpolation": draw_interpolation(self.interpolation),
        }

    def _box(self, height: int, width: int) -> tuple[int, int, int, int]:
        for _ in range(ATTEMPTS):
            area = height * width * uniform(*self.scale)
            ratio = math.exp(uniform(math.log(self.ratio[0]), math.log(self.ratio[1])))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                return randint(height - h + 1), randint(width - w + 1), h, w
        # no sample fits: the largest centre crop with an allowed ratio
        ratio = min(max(width / height, self.ratio[0]), self.ratio[1])
        w, h = min(width, max(1, round(height * ratio))), min(height, max(1, round(width / ratio)))
        return (height - h) // 2, (width - w) // 2, h, w

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return resized_crop(inpt, **params, size=self.size)


class PadCrop(Transform):
    """Pad all sides by `pad` zeros and take a random crop of `size`: for small images."""

    def __init__(self, size: int | tuple[int, int], pad: int = 4) -> None:
        super().__init__()
        self.size = check_sides("pad_crop", size)
        self.pad = check_size("pad_crop", pad)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = size_of(flat_inputs[0])
        spare = (height + 2 * self.pad - self.size[0], width + 2 * self.pad - self.size[1])
        if min(spare) < 0:
            raise ValueError(
                f"pad_crop({_written(self.size)}, {self.pad}) does not fit an image of {height} x {width} pixels."
            )
        return {"top": randint(spare[0] + 1), "left": randint(spare[1] + 1)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        inpt = pad(inpt, *[self.pad] * 4)
        return crop(inpt, params["top"], params["left"], *self.size)


class Resize(Transform):
    """Resize to `size` without regard to the aspect ratio; keep="ratio": the short side to `size`, one number."""

    def __init__(
        self, size: int | tuple[int, int], interpolation: str = "bicubic", keep: str = "square"
    ) -> None:
        super().__init__()
        if keep not in ("square", "ratio"):
            raise ValueError(f"resize takes keep as one of square, ratio; got {keep!r}.")
        self.size = check_sides("resize", size)
        if keep == "ratio":
            check_size("resize with keep='ratio'", size)
        self.keep = keep
        self.interpolation = check_interpolation("resize", interpolation)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        return {"interpolation": draw_interpolation(self.interpolation)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        size = covered(size_of(inpt), self.size[0]) if self.keep == "ratio" else self.size
        return resize(inpt, size, antialias=True, **params)


class CenterCrop(Transform):
    """Centre crop of `size`; smaller images are zero-padded."""

    def __init__(self, size: int | tuple[int, int]) -> None:
        super().__init__()
        self.size = check_sides("center_crop", size)

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return center_crop(inpt, self.size)


def _written(size: tuple[int, int]) -> str:
    return str(size[0] if size[0] == size[1] else size)


def covered(size: tuple[int, int], short: int) -> tuple[int, int]:
    """(height, width) with a short side of `short` pixels; the long side is truncated to an integer."""
    height, width = size
    if width <= height:
        return int(short * height / width), short
    return short, int(short * width / height)


TRANSFORMS = {"crop": RandomResizedCrop, "pad_crop": PadCrop, "resize": Resize, "center_crop": CenterCrop}
