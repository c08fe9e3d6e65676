"""Random erasing (Zhong et al. 2017, arXiv:1708.04896), per pixel, as in timm."""

import math
from typing import Any

import torch
from torch import Tensor

from tetravit.data.transforms.base import (
    ImageTransform,
    chance,
    check_probability,
    check_range,
    randint,
    uniform,
)

ATTEMPTS = 10


class Erase(ImageTransform):
    """With probability `p`, fill one rectangle of the normalized image with Gaussian noise.

    Args:
        p: probability.
        area: of the rectangle, as a share of the image, (from, to).
        ratio: minimum height / width; the maximum is its inverse.
    """

    normalized = True

    def __init__(
        self, p: float = 0.25, area: tuple[float, float] = (0.02, 1 / 3), ratio: float = 0.3
    ) -> None:
        super().__init__()
        self.p = check_probability("erase", p)
        self.area = check_range("erase", "area", area, 0.0, 1.0)
        self.log_ratio = abs(math.log(check_range("erase", "ratio", (ratio, 1.0), 0.01, 1.0)[0]))

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = flat_inputs[0].shape[-2:]
        if not chance(self.p):
            return {"box": None}
        for _ in range(ATTEMPTS):
            area = height * width * uniform(*self.area)
            ratio = math.exp(uniform(-self.log_ratio, self.log_ratio))
            h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if h < height and w < width:
                return {"box": (randint(height - h + 1), randint(width - w + 1), h, w)}
        return {"box": None}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if params["box"] is None or not isinstance(inpt, Tensor):
            return inpt
        top, left, h, w = params["box"]
        out = inpt.clone()
        out[..., top : top + h, left : left + w] = torch.randn(*inpt.shape[:-2], h, w)
        return out


TRANSFORMS = {"erase": Erase}
