"""AutoAugment's policy for ImageNet (Cubuk et al. 2018, arXiv:1805.09501, Table 9), on timm's scale of levels."""

from typing import Any

from PIL import Image

from tetravit.data.imageops import apply
from tetravit.data.transforms.base import PillowTransform, chance, randint, sign

# fmt: off
POLICY = (  # (operation, probability, level) twice
    (("PosterizeOriginal", 0.4, 8), ("Rotate", 0.6, 9)),
    (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 5)),
    (("Equalize", 0.8, 8), ("Equalize", 0.6, 3)),
    (("PosterizeOriginal", 0.6, 7), ("PosterizeOriginal", 0.6, 6)),
    (("Equalize", 0.4, 7), ("Solarize", 0.2, 4)),
    (("Equalize", 0.4, 4), ("Rotate", 0.8, 8)),
    (("Solarize", 0.6, 3), ("Equalize", 0.6, 7)),
    (("PosterizeOriginal", 0.8, 5), ("Equalize", 1.0, 2)),
    (("Rotate", 0.2, 3), ("Solarize", 0.6, 8)),
    (("Equalize", 0.6, 8), ("PosterizeOriginal", 0.4, 6)),
    (("Rotate", 0.8, 8), ("Color", 0.4, 0)),
    (("Rotate", 0.4, 9), ("Equalize", 0.6, 2)),
    (("Equalize", 0.0, 7), ("Equalize", 0.8, 8)),
    (("Invert", 0.6, 4), ("Equalize", 1.0, 8)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Rotate", 0.8, 8), ("Color", 1.0, 2)),
    (("Color", 0.8, 8), ("Solarize", 0.8, 7)),
    (("Sharpness", 0.4, 7), ("Invert", 0.6, 8)),
    (("ShearX", 0.6, 5), ("Equalize", 1.0, 9)),
    (("Color", 0.4, 0), ("Equalize", 0.6, 3)),
    (("Equalize", 0.4, 7), ("Solarize", 0.2, 4)),
    (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 5)),
    (("Invert", 0.6, 4), ("Equalize", 1.0, 8)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Equalize", 0.8, 8), ("Equalize", 0.6, 3)),
)
# fmt: on


class AutoAugment(PillowTransform):
    """One of 25 pairs of operations, chosen uniformly; each operation is applied with its own probability."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        pair = POLICY[randint(len(POLICY))]
        return {"steps": [(name, float(level), sign()) for name, p, level in pair if chance(p)]}

    def pillow(self, image: Image.Image, params: dict[str, Any]) -> Image.Image:
        for name, level, direction in params["steps"]:
            image = apply(name, image, level, direction, Image.Resampling.BICUBIC)
        return image


TRANSFORMS = {"autoaugment": AutoAugment}
