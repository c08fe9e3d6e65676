"""Image operations of RandAugment and AutoAugment on Pillow images, and the mapping from a level, 0 to 10, to
arguments.

An operation is `(image, value, resample) -> image`; a level function is `(level, sign) -> value`, where sign, 1 or
-1, sets the direction. Names and arithmetic follow timm (data/auto_augment.py, 1.0), which trained the published
models of all four families.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from tetravit.data.shifting import shifted_columns, shifted_rows

MAX_LEVEL = 10.0
FILL = (124, 116, 104)  # the mean colour of ImageNet, fill value outside the image
Operation = Callable[[Image.Image, float, Image.Resampling], Image.Image]
Level = Callable[[float, int], float]


def apply(name: str, image: Image.Image, level: float, sign: int, resample: Image.Resampling) -> Image.Image:
    """Apply operation `name` at `level`, in 0..10."""
    operation, value = OPERATIONS[name]
    return operation(image, value(level, sign), resample)


def _affine(
    image: Image.Image, value: float, resample: Image.Resampling, matrix: Callable[..., Any]
) -> Image.Image:
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix(value, *image.size), resample=resample, fillcolor=FILL
    )


def _along(
    image: Image.Image,
    value: float,
    resample: Image.Resampling,
    matrix: Callable[..., Any],
    shifts: Callable[..., np.ndarray],
    shifted: Callable[..., np.ndarray],
) -> Image.Image:
    """An affine map that shifts pixels along one axis; bicubic interpolation uses the faster `shifted`."""
    if resample != Image.Resampling.BICUBIC:
        return _affine(image, value, resample, matrix)
    return Image.fromarray(shifted(np.asarray(image), shifts(value, *image.size), FILL))


_shear_x = partial(
    _along,
    matrix=lambda v, w, h: (1, v, 0, 0, 1, 0),
    shifts=lambda v, w, h: v * (np.arange(h) + 0.5),
    shifted=shifted_rows,
)
_shear_y = partial(
    _along,
    matrix=lambda v, w, h: (1, 0, 0, v, 1, 0),
    shifts=lambda v, w, h: v * (np.arange(w) + 0.5),
    shifted=shifted_columns,
)
_translate_x = partial(
    _along,
    matrix=lambda v, w, h: (1, 0, v * w, 0, 1, 0),
    shifts=lambda v, w, h: np.full(h, v * w),
    shifted=shifted_rows,
)
_translate_y = partial(
    _along,
    matrix=lambda v, w, h: (1, 0, 0, 0, 1, v * h),
    shifts=lambda v, w, h: np.full(w, v * h),
    shifted=shifted_columns,
)


def _rotate(image: Image.Image, value: float, resample: Image.Resampling) -> Image.Image:
    return image.rotate(value, resample=resample, fillcolor=FILL)


def _auto_contrast(image: Image.Image, value: float, resample: Image.Resampling) -> Image.Image:
    return ImageOps.autocontrast(image)


def _equalize(image: Image.Image, value: float, resample: Image.Resampling) -> Image.Image:
    return ImageOps.equalize(image)


def _invert(image: Image.Image, value: float, resample: Image.Resampling) -> Image.Image:
    return ImageOps.invert(image)


def _posterize(image: Image.Image, value: float, resample: Image.Resampling) -> Image.Image:
    mask = 256 - 2 ** (8 - min(8, int(value)))  # 0 bits gives black, which Pillow's posterize rejects
    return image.point([i & mask for i in range(256)] * 3)


def _solarize(image: Image.Image, value: float, resample: Image.Resampling) -> Image.Image:
    return ImageOps.solarize(image, int(value))


def _solarize_add(image: Image.Image, value: float, resample: Image.Resampling) -> Image.Image:
    table = [min(255, i + int(value)) if i < 128 else i for i in range(256)]
    return image.point(table * 3)


def _enhance(
    image: Image.Image, value: float, resample: Image.Resampling, kind: Callable[..., Any]
) -> Image.Image:
    enhanced: Image.Image = kind(image).enhance(value)
    return enhanced


def _none(level: float, sign: int) -> float:
    return 0.0


def _signed(limit: float) -> Level:
    return lambda level, sign: sign * (level / MAX_LEVEL) * limit


def _to_gray_and_back(level: float, sign: int) -> float:
    return (level / MAX_LEVEL) * 1.8 + 0.1


def _away_from_one(level: float, sign: int) -> float:
    return max(0.1, 1.0 + sign * (level / MAX_LEVEL) * 0.9)


def _bits(level: float, sign: int) -> float:
    return int((level / MAX_LEVEL) * 4)


def _threshold(level: float, sign: int) -> float:
    return min(256, int((level / MAX_LEVEL) * 256))


_KINDS = {
    "Color": ImageEnhance.Color,
    "Contrast": ImageEnhance.Contrast,
    "Brightness": ImageEnhance.Brightness,
    "Sharpness": ImageEnhance.Sharpness,
}

OPERATIONS: dict[str, tuple[Operation, Level]] = {
    "AutoContrast": (_auto_contrast, _none),
    "Equalize": (_equalize, _none),
    "Invert": (_invert, _none),
    "Rotate": (_rotate, _signed(30.0)),
    "PosterizeOriginal": (_posterize, lambda level, sign: _bits(level, sign) + 4),
    "PosterizeIncreasing": (_posterize, lambda level, sign: 4 - _bits(level, sign)),
    "Solarize": (_solarize, _threshold),
    "SolarizeIncreasing": (_solarize, lambda level, sign: 256 - _threshold(level, sign)),
    "SolarizeAdd": (_solarize_add, lambda level, sign: min(128, int((level / MAX_LEVEL) * 110))),
    "ShearX": (_shear_x, _signed(0.3)),
    "ShearY": (_shear_y, _signed(0.3)),
    "TranslateXRel": (_translate_x, _signed(0.45)),
    "TranslateYRel": (_translate_y, _signed(0.45)),
    **{name: (partial(_enhance, kind=kind), _to_gray_and_back) for name, kind in _KINDS.items()},
    **{f"{name}Increasing": (partial(_enhance, kind=kind), _away_from_one) for name, kind in _KINDS.items()},
}


class ColorJitter:
    """Jitter brightness, contrast and saturation by factors from 1 - x to 1 + x and hue by up to `hue`, in random
    order.

    hue: a share of the full circle, 0..0.5. Randomness comes from torch's global generator.
    Source: torchvision 0.29, transforms.v2.ColorJitter, bitwise equal with the same random draws.
    """

    def __init__(self, brightness: float, contrast: float, saturation: float, hue: float) -> None:
        factors = [(max(0.0, 1 - x), 1 + x) if x else None for x in (brightness, contrast, saturation)]
        self.ranges = [*factors, (-hue, hue) if hue else None]
        self.changes = (*map(_enhanced, ("Brightness", "Contrast", "Color")), _turned)

    def __call__(self, image: Image.Image) -> Image.Image:
        order = torch.randperm(4).tolist()
        drawn = [r and float(torch.empty(1).uniform_(*r).item()) for r in self.ranges]
        for i in order:
            value = drawn[i]
            if value is not None:
                image = self.changes[i](image, value)
        return image


def _enhanced(kind: str) -> Callable[[Image.Image, float], Image.Image]:
    return lambda image, value: _enhance(image, value, Image.Resampling.NEAREST, _KINDS[kind])


def _turned(image: Image.Image, turn: float) -> Image.Image:
    """Shift the hue by a share of the circle."""
    h, s, v = image.convert("HSV").split()
    hues = np.array(h, dtype=np.uint8) + np.int32(turn * 255).astype(np.uint8)  # wraps around
    return Image.merge("HSV", (Image.fromarray(hues), s, v)).convert(image.mode)


def blur(image: Image.Image, radius: float) -> Image.Image:
    """Gaussian blur; radius in pixels."""
    return image.filter(ImageFilter.GaussianBlur(radius))


def gray(image: Image.Image) -> Image.Image:
    """Grayscale with three equal channels."""
    return image.convert("L").convert("RGB")


def clip_level(level: float) -> float:
    """A sampled level, clamped to 0..10."""
    return max(0.0, min(level, MAX_LEVEL))
