"""The interface of image models for exports and runtimes.

Shapes: B batch, C channels, P detections, (Hi, Wi) image in pixels.
"""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tetravit.backbones.base import Backbone

SMALLEST, LARGEST = 64, 4096  # range of image sides of a captured graph, in pixels


class Portable(nn.Module):
    """A module that can be exported: images (B, C, Hi, Wi), and possibly other inputs, to tensors.

    program_inputs: names of the arguments of `forward`. accelerated: the method, images to tensors, that a runtime
    replaces.
    """

    program_inputs: ClassVar[tuple[str, ...]] = ("images",)
    accelerated: ClassVar[str] = "forward"
    backbone: Backbone

    @property
    def program_sides(self) -> range:
        """The allowed image sides in pixels."""
        return range(SMALLEST, LARGEST + 1)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs of `forward`, in order."""
        raise NotImplementedError

    def usual_sides(self, otherwise: int) -> tuple[int, int]:
        """The default height and width of its images in pixels; `otherwise` if it has none."""
        return otherwise, otherwise

    def other_inputs(self, images: Tensor) -> tuple[Tensor, ...]:
        """Examples of the inputs after the images, one row per image."""
        return ()

    def accelerated_parts(self) -> Sequence[nn.Module]:
        """The modules used by `accelerated`."""
        return (self,)

    def facts(self) -> dict[str, Any]:
        """Metadata of the module for an exported file, JSON-ready."""
        return {}

    def difference(self, got: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
        """The largest difference of outputs of `forward`, relative to the largest output."""
        return max(share(g, e) for g, e in zip(got, expected, strict=True))

    def count_objects(self, outputs: Sequence[Tensor]) -> int | None:
        """Number of objects in outputs of `forward`; None: not a detector."""
        return None


def check_model(model: Any, verb: str) -> None:
    """Raises: ValueError if the argument of `verb` is not a model."""
    if not isinstance(model, Portable):
        cure = (
            f": tetravit.load({model!r}) reads one from a file"
            if isinstance(model, str | os.PathLike)
            else ""
        )
        raise ValueError(
            f"{verb} takes a model, as create_model or load gives it; got a {type(model).__name__}{cure}."
        )


def flat(outputs: Any) -> tuple[Tensor, ...]:
    """The outputs of `forward` (a tensor, a list or a dict) as a tuple."""
    if isinstance(outputs, Tensor):
        return (outputs,)
    return tuple(outputs.values()) if isinstance(outputs, Mapping) else tuple(outputs)


def apart(got: Mapping[str, Tensor], expected: Mapping[str, Tensor], image: int) -> float:
    """The largest difference of the detections of an image; infinite if their number differs.

    NaN counts as infinite. Each detection is compared with the nearest of its class: detections with nearly equal
    scores may change order.
    """
    mine, theirs = ({k: v[image][x["valid"][image]] for k, v in x.items()} for x in (got, expected))
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


def share(got: Tensor, expected: Tensor) -> float:
    """The largest difference relative to the largest value, at least 1; infinite for another shape or NaN."""
    if got.shape != expected.shape:
        return math.inf
    return _number((got - expected).abs().max() / expected.abs().max().clamp(min=1))


def _number(difference: Tensor) -> float:
    """Infinite for NaN, which `max` would ignore."""
    value = difference.item()
    return math.inf if math.isnan(value) else value
