"""Augmentations of self-supervised training: colour jitter, grayscale, blur, solarize, each with a probability.

The arithmetic is Pillow's, as in the code of DINO (facebookresearch/dino@7c446df): its Gaussian blur is an
approximation by three box blurs. Colour operations skip images that do not have three channels.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torch.nn import functional as F

from tetravit.data.imageops import ColorJitter, gray
from tetravit.data.transforms.base import (
    ImageTransform,
    chance,
    check_number,
    check_probability,
    check_range,
    from_pillow,
    to_pillow,
    uniform,
)

HALF = 128  # threshold of solarize


class Jitter(ImageTransform):
    """With probability `p`, torchvision's colour jitter: brightness, contrast, saturation and hue in random order.

    Args:
        p: probability.
        brightness, contrast, saturation: each factor is uniform from 1 - x to 1 + x.
        hue: maximum shift, as a share of the full circle, 0..0.5.

    Raises:
        ValueError: for a number outside its range.
    """

    def __init__(
        self,
        p: float = 0.8,
        brightness: float = 0.4,
        contrast: float = 0.4,
        saturation: float = 0.2,
        hue: float = 0.1,
    ) -> None:
        super().__init__()
        self.p = check_probability("jitter", p)
        self.jitter = ColorJitter(
            check_number("jitter", "brightness", brightness, 0.0),
            check_number("jitter", "contrast", contrast, 0.0),
            check_number("jitter", "saturation", saturation, 0.0),
            check_number("jitter", "hue", hue, 0.0, 0.5),
        )

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        return {"on": chance(self.p)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if not params["on"] or not isinstance(inpt, Tensor) or inpt.shape[0] != 3:
            return inpt
        return from_pillow(self.jitter(to_pillow(inpt)))


class Gray(ImageTransform):
    """With probability `p`, grayscale with three equal channels."""

    def __init__(self, p: float = 0.2) -> None:
        super().__init__()
        self.p = check_probability("gray", p)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        return {"on": chance(self.p)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if not params["on"] or not isinstance(inpt, Tensor) or inpt.shape[0] != 3:
            return inpt
        return from_pillow(gray(to_pillow(inpt)))


class Blur(ImageTransform):
    """With probability `p`, Pillow's Gaussian blur with a radius sampled from `radius`, in pixels.

    Raises:
        ValueError: for a number outside its range.
    """

    def __init__(self, p: float = 0.5, radius: tuple[float, float] = (0.1, 2.0)) -> None:
        super().__init__()
        self.p = check_probability("blur", p)
        self.radius = check_range("blur", "radius", radius, 0.0, 1000.0)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        on = chance(self.p)
        return {"radius": uniform(*self.radius) if on else None}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if params["radius"] is None or not isinstance(inpt, Tensor):
            return inpt
        change = ImageFilter.GaussianBlur(params["radius"])
        if inpt.shape[0] == 3:
            return from_pillow(to_pillow(inpt).filter(change))
        planes = [np.array(Image.fromarray(plane.numpy()).filter(change)) for plane in inpt]
        return torch.from_numpy(np.stack(planes))


class Solarize(ImageTransform):
    """With probability `p`, solarize: values from 128 up are inverted."""

    def __init__(self, p: float = 0.2) -> None:
        super().__init__()
        self.p = check_probability("solarize", p)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        return {"on": chance(self.p)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if not params["on"] or not isinstance(inpt, Tensor):
            return inpt
        return torch.where(inpt >= HALF, 255 - inpt, inpt)


class Elastic(ImageTransform):
    """A smooth random displacement field; for small images such as scanned characters.

    Args:
        amount: standard deviation of the displacement, as a share of half the side.
        points: control points per side, between which displacements are interpolated.
        stroke: maximum blend with a dilated (or eroded) image, 3 x 3 pixels.

    Raises:
        ValueError: for a number outside its range.
    """

    def __init__(self, amount: float = 0.08, points: int = 4, stroke: float = 0.0) -> None:
        super().__init__()
        self.amount = check_number("elastic", "an amount", amount, 0.0, 1.0)
        self.points = int(check_number("elastic", "points", points, 2, 64))
        self.stroke = check_number("elastic", "a stroke", stroke, 0.0, 1.0)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        field = self.amount * torch.randn(1, 2, self.points, self.points)
        return {"field": field, "stroke": uniform(-self.stroke, self.stroke)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if not isinstance(inpt, Tensor):
            return inpt
        size: Sequence[int] = inpt.shape[-2:]
        moves = F.interpolate(params["field"], size=tuple(size), mode="bicubic", align_corners=True)
        rows, columns = (torch.linspace(-1 + 1 / n, 1 - 1 / n, n) for n in size)
        grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij")[::-1], dim=-1)[None]
        out = F.grid_sample(
            inpt[None].float(), grid + moves.permute(0, 2, 3, 1), mode="bilinear", align_corners=False
        )
        share = params["stroke"]
        if share > 0:
            out = out.lerp(F.max_pool2d(out, 3, 1, 1), share)
        elif share < 0:
            out = out.lerp(-F.max_pool2d(-out, 3, 1, 1), -share)
        return out[0].round_().clamp_(0, 255).to(torch.uint8)


TRANSFORMS = {"jitter": Jitter, "gray": Gray, "blur": Blur, "solarize": Solarize, "elastic": Elastic}
