"""Geometry between the original picture and the model's input; maps resampled onto the picture.

Shapes: (H0, W0) the original picture, (Hi, Wi) the model's input, H W the grid of a map, (Ho, Wo) a picture to draw.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from tetravit.data.preprocess import resized
from tetravit.explainers.base import Map
from tetravit.structures import Preprocess

Size = tuple[int, int]
Enlarging = Literal["smooth", "blocks", "published"]


@dataclass(frozen=True)
class View:
    """The transform from the original picture to the model's input: resize, then crop.

    picture: (H0, W0). resized: height and width after resizing. offset: rows and columns cropped at the top and left.
    sides: (Hi, Wi).
    """

    picture: Size
    resized: Size
    offset: Size
    sides: Size

    @property
    def seen(self) -> tuple[float, float, float, float]:
        """The part of the picture inside the model's input: left, top, right, bottom as pixel edges."""
        edges = []
        for axis in (1, 0):
            scale = self.picture[axis] / self.resized[axis]
            edges.append((self.offset[axis] * scale, (self.offset[axis] + self.sides[axis]) * scale))
        (left, right), (top, bottom) = edges
        return left, top, min(right, float(self.picture[1])), min(bottom, float(self.picture[0]))

    @property
    def share(self) -> float:
        """The share of the picture's pixels inside the model's input."""
        left, top, right, bottom = self.seen
        return (right - left) * (bottom - top) / (self.picture[0] * self.picture[1])

    def to_input(self, x: float, y: float) -> tuple[float, float]:
        """Map a pixel of the picture to the model's input; coordinates count from 0 at the first pixel.

        Raises:
            ValueError: for a pixel outside the picture or outside the crop.
        """
        height, width = self.picture
        if not (0 <= x < width and 0 <= y < height):
            raise ValueError(
                f"The query ({x:g}, {y:g}) lies outside of the picture of {width} x {height} pixels."
            )
        left, top, right, bottom = self.seen
        if not (left <= x + 0.5 <= right and top <= y + 0.5 <= bottom):
            raise ValueError(
                f"The query ({x:g}, {y:g}) lies in the part of the picture outside the crop: the model's input covers"
                f" x {left:.0f} to {right:.0f}, y {top:.0f} to {bottom:.0f}."
            )
        return (self._input(x, 1), self._input(y, 0))

    def to_picture(self, box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
        """Map a box from the model's input to the picture; both left, top, right, bottom as pixel edges."""
        edges = []
        for value, axis in zip(box, (1, 0, 1, 0), strict=True):
            inside = min(max(value, 0.0), float(self.sides[axis]))
            edges.append((inside + self.offset[axis]) * self.picture[axis] / self.resized[axis])
        left, top, right, bottom = edges
        return left, top, right, bottom

    def _input(self, value: float, axis: int) -> float:
        scale = self.resized[axis] / self.picture[axis]
        return (value + 0.5) * scale - 0.5 - self.offset[axis]

    def paint(self, map: Map, size: Size | None = None, how: Enlarging = "smooth") -> tuple[Tensor, Tensor]:
        """Resample a map onto the picture.

        Args:
            map: a spatial map.
            size: (Ho, Wo) of the result; None: of the original picture.
            how: "smooth": bilinear between the centres of the tokens. "blocks": the value of the nearest centre.
                "published": as the authors' scripts draw them: token i covers [stride * i, stride * (i + 1)).

        Returns:
            Values (slices, Ho, Wo) or (Ho, Wo), and a mask (Ho, Wo) bool of where they are defined: inside the crop
            and inside the rows and columns that the model uses.
        """
        height, width = size or self.picture
        rows, has_row = self._axis(height, 0, map, how)
        columns, has_column = self._axis(width, 1, map, how)
        values = map.values.float()
        for axis, (low, high, share) in ((-2, rows), (-1, columns)):
            share = share[:, None] if axis == -2 else share
            values = torch.lerp(values.index_select(axis, low), values.index_select(axis, high), share)
        return values, has_row[:, None] & has_column

    def _axis(
        self, count: int, axis: int, map: Map, how: Enlarging
    ) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
        """For `count` positions along an axis: the neighbouring tokens, the weight of the second, and validity."""
        places = (torch.arange(count, dtype=torch.float64) + 0.5) / count * self.resized[axis] - 0.5
        places = places - self.offset[axis]
        tokens = map.grid[axis]
        inside = (places >= -0.5) & (places <= self.sides[axis] - 0.5) & (places < map.stride * tokens - 0.5)
        if how == "published":
            at = ((places + 0.5) / map.stride).floor()
        else:
            at = (places - map.centre) / map.stride
        if how == "blocks":
            at = at.round()
        at = at.clamp(0, tokens - 1)
        low = at.floor().long()
        return (low, (low + 1).clamp(max=tokens - 1), (at - low).float()), inside


def view_of(picture: Size, p: Preprocess) -> View:
    """The view of a picture of (height, width) under the preprocessing `p`."""
    size = resized(picture, p)
    sides = p.sides if p.mode == "center" else size
    offset = (round((size[0] - sides[0]) / 2.0), round((size[1] - sides[1]) / 2.0))  # as center_crop rounds
    return View(picture, size, offset, sides)


def whole_input(sides: Size) -> View:
    """The view of a picture that is used as the model's input unchanged."""
    return View(sides, sides, (0, 0), sides)


def uncropped(p: Preprocess, size: int | Literal["own"], picture: Size) -> Preprocess:
    """Preprocessing without a crop: the short side `size` pixels, or "own": the size of the picture."""
    side = min(picture) if size == "own" else size
    return replace(p, mode="fit", size=side, longest=None)


def resampled(map: Map, like: Map) -> Tensor:
    """A map (H, W) sampled at the centres of another grid, bilinear, clamped at the border."""
    values = map.values
    for axis in (0, 1):
        at = (torch.arange(like.grid[axis]) * like.stride + like.centre - map.centre) / map.stride
        at = at.clamp(0, map.grid[axis] - 1)
        low = at.floor().long()
        high = (low + 1).clamp(max=map.grid[axis] - 1)
        share = (at - low).float()
        share = share[:, None] if axis == 0 else share
        values = torch.lerp(values.index_select(axis, low), values.index_select(axis, high), share)
    return values
