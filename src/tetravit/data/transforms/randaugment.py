"""RandAugment (Cubuk et al. 2019, arXiv:1909.13719) as timm's `rand-m9-mstd0.5-inc1`."""

from typing import Any

import torch
from PIL import Image

from tetravit.data.imageops import MAX_LEVEL, OPERATIONS, apply, clip_level
from tetravit.data.transforms.base import (
    PillowTransform,
    chance,
    check_number,
    check_probability,
    randint,
    sign,
)

# fmt: off
CHOICES = (
    "AutoContrast", "Equalize", "Invert", "Rotate", "PosterizeIncreasing", "SolarizeIncreasing", "SolarizeAdd",
    "ColorIncreasing", "ContrastIncreasing", "BrightnessIncreasing", "SharpnessIncreasing",
    "ShearX", "ShearY", "TranslateXRel", "TranslateYRel",
)
# fmt: on
assert set(CHOICES) <= set(OPERATIONS)


class RandAugment(PillowTransform):
    """`n` of 15 operations, sampled with replacement, each applied with probability `p`.

    Args:
        n: number of sampled operations.
        m: level, 0..10: 0 weakest, 10 strongest.
        std: standard deviation of the level around `m`, clamped to 0..10.
        p: probability of applying each sampled operation.

    Raises:
        ValueError: for a number outside its range.
    """

    def __init__(self, n: int = 2, m: float = 9, std: float = 0.5, p: float = 0.5) -> None:
        super().__init__()
        if not isinstance(n, int) or n < 1:
            raise ValueError(f"randaugment takes a count n from 1 up; got {n!r}.")
        self.n = n
        self.m = check_number("randaugment", "a level m", m, 0.0, MAX_LEVEL)
        self.std = check_number("randaugment", "a spread std", std, 0.0)
        self.p = check_probability("randaugment", p)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        steps = []
        for _ in range(self.n):
            name = CHOICES[randint(len(CHOICES))]
            if chance(self.p):
                steps.append((name, clip_level(self.m + self.std * float(torch.randn(()))), sign()))
        return {"steps": steps}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return super().transform(inpt, params) if params["steps"] else inpt

    def pillow(self, image: Image.Image, params: dict[str, Any]) -> Image.Image:
        for name, level, direction in params["steps"]:
            image = apply(name, image, level, direction, Image.Resampling.BICUBIC)
        return image


TRANSFORMS = {"randaugment": RandAugment}
