"""Whether a written file answers what the model answers.

Shapes: B batch, C channels, P detections, (Hi, Wi) image in pixels.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tetravit.data.shapes import draw
from tetravit.data.transforms.normalize import Normalize
from tetravit.exports.base import Run
from tetravit.models import Detector

BATCHES = (1, 3)
APART = (27, 61)  # pixels between the heights and the widths of the sizes, where every side is allowed


@dataclass(frozen=True)
class Compared:
    """difference: the largest, as a share of the largest answer; worst: the shape where it was found."""

    difference: float
    worst: str
    shapes: tuple[tuple[int, ...], ...]
    objects: int | None


def compare(model: Any, run: Run, sides: tuple[int, int], allowed: range) -> Compared:
    """Ask both about drawings of two or three sizes in two batches.

    Args:
        model: in evaluation mode, on the processor.
        run: what the file answers.
        sides: height and width of the first size; the others are larger and smaller, as far as is allowed.
        allowed: the sides that the file takes.
    """
    worst, where, shapes, objects = -1.0, "", [], 0
    for height, width in _sizes(sides, allowed):
        for count in BATCHES:
            images = pictures(model, count, height, width)
            shapes.append(tuple(images.shape))
            apart, found = _difference(model, run, images)
            objects += found
            if not apart <= worst:
                worst, where = apart, f"{count} x {height} x {width}"
    return Compared(worst, where, tuple(shapes), objects if isinstance(model, Detector) else None)


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


def _difference(model: Any, run: Run, images: Tensor) -> tuple[float, int]:
    """The largest difference as a share of the largest answer, and how many objects were found."""
    if isinstance(model, Detector):
        height, width = images.shape[2:]
        sizes = torch.tensor([[height - 7 * i, width - 5 * i] for i in range(len(images))])
        with torch.no_grad():
            wanted = model(images, sizes)
        got = dict(zip(wanted, run([images, sizes]), strict=True))
        return max(apart(got, wanted, i) for i in range(len(images))), int(wanted["valid"].sum())
    with torch.no_grad():
        answer = model(images)
    parts = [answer] if isinstance(answer, Tensor) else answer
    return max(_share(g, w) for g, w in zip(run([images]), parts, strict=True)), 0


def apart(got: Mapping[str, Tensor], wanted: Mapping[str, Tensor], image: int) -> float:
    """How far the detections of an image are from those that are wanted; infinite where their number differs.

    What is no number is infinitely far, too. Each is compared with the nearest of its class: detections of nearly
    equal scores may change places.
    """
    mine, theirs = ({k: v[image][x["valid"][image]] for k, v in x.items()} for x in (got, wanted))
    if len(mine["boxes"]) != len(theirs["boxes"]):
        return math.inf
    largest = 0.0
    scale = theirs["boxes"].abs().max().clamp(min=1) if len(theirs["boxes"]) else 1.0
    for i in range(len(theirs["boxes"])):
        box = (mine["boxes"] - theirs["boxes"][i]).abs().amax(dim=1) / scale
        score = (mine["scores"] - theirs["scores"][i]).abs()
        both = torch.maximum(box, score)
        both[(mine["labels"] != theirs["labels"][i]) | both.isnan()] = math.inf
        nearest = int(both.argmin())
        largest = max(largest, both[nearest].item())
        if "masks" in theirs:
            largest = max(largest, _number((mine["masks"][nearest] - theirs["masks"][i]).abs().max()))
    return largest


def _share(got: Tensor, wanted: Tensor) -> float:
    if got.shape != wanted.shape:
        return math.inf
    return _number((got - wanted).abs().max() / wanted.abs().max().clamp(min=1))


def _number(difference: Tensor) -> float:
    """NaN is no answer, and `max` would pass over it."""
    value = difference.item()
    return math.inf if math.isnan(value) else value
