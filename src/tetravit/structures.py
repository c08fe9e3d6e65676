"""Plain records that every layer may pass around: no behaviour beyond moving and counting."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Self

import torch
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Kind = Literal["classify", "segment", "detect"]  # what is known of an image: a class, a label map, objects
DataKind = Literal[
    "classify", "segment", "detect", "unlabelled"
]  # the same of a data set; or nothing is known


@dataclass(frozen=True)
class Preprocess:
    """What turns a picture into the tensor some weights were trained for.

    size: side of the square the model sees, in pixels. crop: the share of the resized image that the centre
    crop keeps (resize the short side to size / crop, then crop), in (0, 1]. mode: `center` keeps the aspect
    ratio and crops; `squash` resizes both sides to `size`; `fit` keeps the ratio and all of the image, the short
    side `size` pixels or less, the long side `longest` or less. mean, std: per channel, of values in [0, 1].
    """

    size: int = 224
    crop: float = 0.875
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    mode: Literal["center", "squash", "fit"] = "center"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    longest: int | None = None


# How the published models of dense tasks see a picture.
ADE20K_INPUT = Preprocess(size=512, longest=2048, mode="fit", interpolation="bilinear")
COCO_INPUT = Preprocess(size=800, longest=1333, mode="fit", interpolation="bilinear")


@dataclass
class Target:
    """What an image of a dense task holds. M objects; all sizes in pixels of the image beside it."""

    boxes: Tensor  # (M, 4) float, x1 y1 x2 y2
    labels: Tensor  # (M,) int64, counted from 0
    masks: Tensor | None = None  # (M, Hi, Wi) bool
    crowd: Tensor | None = None  # (M,) bool: a region of many objects, evaluated apart
    area: Tensor | None = None  # (M,) float, as annotated
    image_id: int = -1
    size: tuple[int, int] | None = None  # (height, width) of the original image


@dataclass
class Detections:
    """What a detector found in one image. Boxes in absolute pixels x1 y1 x2 y2; labels counted from 0."""

    boxes: Tensor  # (M, 4) float
    scores: Tensor  # (M,) float in [0, 1]
    labels: Tensor  # (M,) int64
    masks: Tensor | None = None  # (M, Hi, Wi) bool


@dataclass
class Sample:
    """One item of a data set, before it joins a batch."""

    image: Tensor  # (C, Hi, Wi): uint8 from the data set, float after the transforms
    target: Any  # a class index, a label map (Hi, Wi) of integers, a Target
    name: str  # what to call it in a message: a path, or "digits/train/17"


@dataclass
class Batch:
    """Images that take a step together, and what is known of them.

    targets: (B,) int64 labels, (B, K) soft labels, (B, Hi, Wi) label maps; a list of label maps where they differ
    in size, or of `Target`.
    sizes: (B, 2) int64, the true (height, width) of each image where the batch is padded; None: all of it.
    names: what to call each image in a message. indices: their positions in the data set.
    views: the same images, each prepared from the original in other ways, in order: images and sizes alone.
    """

    images: Tensor  # (B, C, Hi, Wi) float, normalized
    targets: Any = None
    sizes: Tensor | None = None
    names: Sequence[str] = field(default_factory=list)
    indices: Sequence[int] = field(default_factory=list)
    views: Sequence["Batch"] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str, memory_format: torch.memory_format | None = None) -> Self:
        """The batch with every tensor on `device`; copies overlap with work where memory is pinned."""
        moved = {f.name: _move(getattr(self, f.name), device) for f in fields(self)}
        if memory_format is not None:
            moved["images"] = moved["images"].contiguous(memory_format=memory_format)
            moved["views"] = [view.to(device, memory_format) for view in self.views]
        return replace(self, **moved)

    def pin_memory(self) -> Self:
        """The batch in page-locked memory, so that the copy to a GPU can overlap."""
        views = [view.pin_memory() for view in self.views]
        return replace(self, images=self.images.pin_memory(), views=views)


def _move(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, Batch):
        return value.to(device)
    if isinstance(value, Target):
        return replace(value, **{f.name: _move(getattr(value, f.name), device) for f in fields(value)})
    if isinstance(value, list):
        return [_move(v, device) for v in value]
    return value
