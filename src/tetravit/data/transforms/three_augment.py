"""3-Augment (Touvron et al. 2022, DeiT III, arXiv:2204.07118): grayscale, solarize or blur, chosen uniformly.

The paper's full stack is `crop | flip | three_augment | color(0.3)`.
"""

from typing import Any

from PIL import Image, ImageOps

from tetravit.data.imageops import blur, gray
from tetravit.data.transforms.base import PillowTransform, randint, uniform


class ThreeAugment(PillowTransform):
    """Always one of the three; the blur radius is uniform from 0.1 to 2 pixels."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        return {"choice": ("gray", "solarize", "blur")[randint(3)], "radius": uniform(0.1, 2.0)}

    def pillow(self, image: Image.Image, params: dict[str, Any]) -> Image.Image:
        if params["choice"] == "gray":
            return gray(image)
        if params["choice"] == "solarize":
            return ImageOps.solarize(image)
        return blur(image, params["radius"])


TRANSFORMS = {"three_augment": ThreeAugment}
