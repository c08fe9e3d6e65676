"""Random rotation, translation, scale and shear in one interpolation; for small images such as scanned characters."""

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tetravit.data.transforms.base import ImageTransform, check_number, check_range, check_sides


class Affine(ImageTransform):
    """A random affine map about the centre. Pixels from outside the image are black.

    Args:
        degrees: maximum rotation in either direction.
        shift: maximum translation as a share of the side, on both axes.
        scale: range of the scale factor, (from, to), log-uniform.
        shear: maximum shear in degrees, in either direction.
        size: side of the result, or (height, width), sampled directly from the original; None: the image's own.

    Raises:
        ValueError: for a number outside its range.
    """

    name = "affine"

    def __init__(
        self,
        degrees: float = 0.0,
        shift: float = 0.0,
        scale: tuple[float, float] = (1.0, 1.0),
        shear: float = 0.0,
        size: int | tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.degrees = check_number(self.name, "degrees", degrees, 0.0, 180.0)
        self.shift = check_number(self.name, "a shift as share of the side", shift, 0.0, 1.0)
        self.scale = check_range(self.name, "scale", scale, 0.01, 100.0)
        self.shear = check_number(self.name, "a shear in degrees", shear, 0.0, 80.0)
        self.size = None if size is None else check_sides(self.name, size)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        angle, dx, dy, scale, shear = (2 * torch.rand(5) - 1).tolist()
        low, high = map(math.log, self.scale)
        return {
            "angle": math.radians(angle * self.degrees),
            "shift": (2 * dx * self.shift, 2 * dy * self.shift),
            "scale": math.exp((low + high + scale * (high - low)) / 2),
            "shear": math.tan(math.radians(shear * self.shear)),
        }

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if not isinstance(inpt, Tensor):
            return inpt
        height, width = inpt.shape[-2:]
        size = self.size if self.size is not None else (height, width)
        grid = _grid(size, height, width, **params)
        out = F.grid_sample(inpt[None].float(), grid, mode="bicubic", align_corners=False)[0]
        return out.round_().clamp_(0, 255).to(torch.uint8)


def _grid(
    size: tuple[int, int],
    height: int,
    width: int,
    angle: float,
    shift: tuple[float, float],
    scale: float,
    shear: float,
) -> Tensor:
    """The sampling grid, (1, *size, 2), in the -1..1 frame of the original."""
    cos, sin, aspect = math.cos(angle) / scale, math.sin(angle) / scale, height / width
    matrix = torch.tensor(
        [
            [cos, sin / aspect],
            [
                (shear * cos - sin) * aspect,
                shear * sin + cos,
            ],  # a rotation preserves angles in pixels, not in the normalized frame
            [-shift[0], -shift[1]],
        ]
    )
    return (_frame(size) @ matrix).view(1, *size, 2)


@cache
def _frame(size: tuple[int, int]) -> Tensor:
    """x, y and 1 of every pixel centre, (H * W, 3), x and y in -1..1."""
    y, x = (((torch.arange(n) * 2 + 1) / n - 1) for n in size)
    return torch.stack([*torch.meshgrid(x, y, indexing="xy"), torch.ones(size)], dim=-1).flatten(0, 1)


class Rotate(Affine):
    """Random rotation by up to `degrees` in either direction."""

    name = "rotate"

    def __init__(self, degrees: float) -> None:
        super().__init__(degrees=degrees)


class Shift(Affine):
    """Random translation by up to `shift` of the side, on both axes."""

    name = "shift"

    def __init__(self, shift: float) -> None:
        super().__init__(shift=shift)


TRANSFORMS = {"affine": Affine, "rotate": Rotate, "shift": Shift}
