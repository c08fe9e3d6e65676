"""Colour jitter of torchvision on Pillow images: brightness, contrast, saturation and hue, in random order."""

from typing import Any

from PIL import Image

from tetravit.data.imageops import ColorJitter
from tetravit.data.transforms.base import PillowTransform, check_number


class Color(PillowTransform):
    """Scale each property by a factor from 1 - x to 1 + x, and shift the hue by up to `hue`.

    Args:
        brightness: x of brightness; default for contrast and saturation.
        contrast: x of contrast; None: as brightness.
        saturation: x of saturation; None: as brightness.
        hue: maximum shift, as a share of the full circle, 0..0.5.

    Raises:
        ValueError: for a number outside its range.
    """

    def __init__(
        self,
        brightness: float,
        contrast: float | None = None,
        saturation: float | None = None,
        hue: float = 0.0,
    ) -> None:
        super().__init__()
        contrast = brightness if contrast is None else contrast
        saturation = brightness if saturation is None else saturation
        self.jitter = ColorJitter(
            check_number("color", "brightness", brightness, 0.0),
            check_number("color", "contrast", contrast, 0.0),
            check_number("color", "saturation", saturation, 0.0),
            check_number("color", "hue", hue, 0.0, 0.5),
        )

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        return {}

    def pillow(self, image: Image.Image, params: dict[str, Any]) -> Image.Image:
        return self.jitter(image)


TRANSFORMS = {"color": Color}
