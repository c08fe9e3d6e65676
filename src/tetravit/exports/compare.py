"""Compare the outputs of a written file with those of the model.

Shapes: B batch, C channels, P detections, (Hi, Wi) image in pixels.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tetravit.data.shapes import draw
from tetravit.data.transforms.normalize import Normalize
from tetravit.exports.base import Run
from tetravit.models.portable import Portable, flat

BATCHES = (1, 3)
APART = (27, 61)  # pixels between the heights and the widths of the sizes, where every side is allowed


@dataclass(frozen=True)
class Compared:
    """difference: the largest, as a share of the largest output; worst: the input shape where it occurred."""

    difference: float
    worst: str
    shapes: tuple[tuple[int, ...], ...]
    objects: int | None


def compare(model: Portable, run: Run, sides: tuple[int, int]) -> Compared:
    """Compare both on drawings of two or three sizes in two batches.

    Args:
        model: in evaluation mode, on the processor.
        run: the written file.
        sides: height and width of the first size; the others are larger and smaller, as far as is allowed.
    """
    worst, where, shapes = -1.0, "", []
    objects: int | None = None
    for height, width in _sizes(sides, model.program_sides):
        for count in BATCHES:
            images = pictures(model, count, height, width)
            shapes.append(tuple(images.shape))
            difference, more = _difference(model, run, images)
            objects = objects if more is None else (objects or 0) + more
            if not difference <= worst:
                worst, where = difference, f"{count} x {height} x {width}"
    return Compared(worst, where, tuple(shapes), objects)


def _sizes(sides: tuple[int, int], allowed: range) -> list[tuple[int, int]]:
    """The first size, a larger one (smaller in what would pass the limit), and a smaller one if there is any."""
    apart = APART if allowed.step == 1 else (allowed.step, 2 * allowed.step)
    height, width = ((side + by, side - by) for side, by in zip(sides, apart, strict=True))
    larger = [more if more in allowed else less for more, less in (height, width)]
    smaller = [max(less, allowed.start) for _, less in (height, width)]
    return list(dict.fromkeys((sides, (larger[0], larger[1]), (smaller[0], smaller[1]))))


def pictures(model: Any, count: int, height: int, width: int) -> Tensor:
    """Drawings (B, C, Hi, Wi), prepared as the model expects pictures; noise where it takes other channels."""
    channels = model.backbone.in_chans
    if channels != 3:
        return torch.randn(count, channels, height, width, generator=torch.Generator().manual_seed(0))
    drawn = [draw(i, split="val", size=max(height, width), most=5).image for i in range(count)]
    images = torch.stack([torch.from_numpy(x).permute(2, 0, 1)[:, :height, :width] for x in drawn])
    normalize = Normalize(model.input.mean, model.input.std) if hasattr(model, "input") else Normalize()
    out: Tensor = normalize(images)
    return out


def _difference(model: Portable, run: Run, images: Tensor) -> tuple[float, int | None]:
    """The largest difference as a share of the largest output, and how many objects the model found."""
    inputs = (images, *model.other_inputs(images))
    with torch.no_grad():
        expected = flat(model(*inputs))
    return model.difference(run(inputs), expected), model.count_objects(expected)
