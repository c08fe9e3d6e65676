"""Resize, crop, pad and flip an image together with its boxes, masks and label maps.

The arithmetic is bitwise that of torchvision, reimplemented because importing torchvision loads torch's compiler,
which takes longer than all other work of a run before its first step.

Shapes: C channels, M objects, (Hi, Wi) pixels. Sizes are (height, width).
Source: torchvision 0.29, transforms.v2.functional.
"""

from dataclasses import dataclass
from typing import TypeVar, final

import torch
from torch import Tensor
from torch.nn import functional as F

from tetravit.data import resizing
from tetravit.data.resizing import Interpolation

Size = tuple[int, int]


@final
@dataclass(frozen=True)
class Boxes:
    """Boxes (M, 4), x1, y1, x2, y2 in pixels, of an image of `size`."""

    values: Tensor
    size: Size


@final
@dataclass(frozen=True)
class Masks:
    """Object masks (M, Hi, Wi), or a label map (Hi, Wi)."""

    values: Tensor


Thing = TypeVar("Thing", Tensor, Boxes, Masks)


def size_of(thing: Tensor | Boxes | Masks) -> Size:
    """(height, width) of an image (C, Hi, Wi), or of the image of boxes or masks."""
    if isinstance(thing, Boxes):
        return thing.size
    values = thing.values if isinstance(thing, Masks) else thing
    height, width = values.shape[-2:]
    return height, width


def flip(thing: Thing) -> Thing:
    """Horizontal flip."""
    if isinstance(thing, Boxes):
        x1, y1, x2, y2 = thing.values.unbind(1)
        width = thing.size[1]
        return Boxes(torch.stack((-(x2 - width), y1, -(x1 - width), y2), dim=1), thing.size)
    if isinstance(thing, Masks):
        return Masks(thing.values.flip(-1))
    return thing.flip(-1)


def crop(thing: Thing, top: int, left: int, height: int, width: int) -> Thing:
    """Crop `height` x `width` pixels at (top, left); the crop lies inside the image."""
    if isinstance(thing, Boxes):
        return _moved(thing, -left, -top, (height, width))
    rows, columns = slice(top, top + height), slice(left, left + width)
    if isinstance(thing, Masks):
        return Masks(thing.values[..., rows, columns])
    return thing[..., rows, columns]


def resize(thing: Thing, size: Size, interpolation: Interpolation = "bilinear", *, antialias: bool) -> Thing:
    """Resize to `size`; masks and label maps with nearest-neighbour sampling."""
    if size_of(thing) == size:
        return thing
    if isinstance(thing, Boxes):
        height, width = (new / old for new, old in zip(size, thing.size, strict=True))
        ratios = torch.tensor([width, height, width, height])
        return Boxes(thing.values.mul(ratios).to(thing.values.dtype), size)
    if isinstance(thing, Masks):
        return Masks(_nearest(thing.values, size))
    return resizing.resize(thing, size, interpolation, antialias=antialias)


def resized_crop(
    thing: Thing, top: int, left: int, height: int, width: int, size: Size, interpolation: Interpolation
) -> Thing:
    """`crop`, then `resize` with antialiasing."""
    return resize(crop(thing, top, left, height, width), size, interpolation, antialias=True)


def pad(thing: Thing, left: int, top: int, right: int, bottom: int, fill: float = 0) -> Thing:
    """Pad each side by a number of pixels with the value `fill`."""
    if isinstance(thing, Boxes):
        height, width = thing.size
        return _moved(thing, left, top, (height + top + bottom, width + left + right))
    sides = (left, right, top, bottom)
    if isinstance(thing, Masks):
        flat = thing.values if thing.values.ndim == 3 else thing.values[None]
        padded = F.pad(flat[None], sides, value=float(fill))[0]
        return Masks(padded if thing.values.ndim == 3 else padded[0])
    return F.pad(thing[None], sides, value=float(fill))[0]  # 4-D, which keeps the memory format


def center_crop(thing: Thing, size: Size) -> Thing:
    """Center crop of `size`; smaller images are zero-padded."""
    if isinstance(thing, Boxes):
        top, left = (round((old - new) / 2.0) for old, new in zip(thing.size, size, strict=True))
        return _moved(thing, -left, -top, size)
    if isinstance(thing, Masks):
        return Masks(resizing.center_crop(thing.values, size))
    return resizing.center_crop(thing, size)


def _moved(boxes: Boxes, right: int, down: int, size: Size) -> Boxes:
    """Boxes translated right and down by some pixels, clipped to an image of `size`."""
    height, width = size
    values = boxes.values + torch.tensor([right, down, right, down], dtype=boxes.values.dtype)
    values[:, 0::2].clamp_(min=0, max=width)
    values[:, 1::2].clamp_(min=0, max=height)
    return Boxes(values, size)


def _nearest(values: Tensor, size: Size) -> Tensor:
    """(..., Hi, Wi) -> (..., height, width), same dtype."""
    if values.numel() == 0:
        return values.reshape(*values.shape[:-2], *size)
    flat = values if values.ndim == 3 else values[None]
    as_is = values.dtype in (torch.float32, torch.float64, torch.uint8)
    out = F.interpolate((flat if as_is else flat.float())[None], size, mode="nearest")[0]
    return out.to(values.dtype).reshape(*values.shape[:-2], *size)
