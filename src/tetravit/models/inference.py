"""Inference of a segmenter: whole image, sliding windows, several scales, horizontal flips.

Shapes: B images, K classes, (Hi, Wi) an image in pixels, w the side of a window.
Source: mmsegmentation 0.30.0, slide_inference and aug_test.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tetravit.heads.parts.conv import resize
from tetravit.heads.parts.pixels import View, most_probable
from tetravit.models.segmenter import SMALLEST, Segmenter, enlarged


@dataclass(frozen=True)
class Inference:
    """Sliding-window and multi-scale inference of a segmenter.

    window: side of a sliding window in pixels; logits of overlapping windows are averaged. None: the whole image.
    stride: step between windows in pixels; None: two thirds of the window. windows_at_once: windows per forward pass.
    scales: factors on the resize of the preprocessing, see `data.preprocess.scaled`. flip: also run the horizontally
    flipped image. Probabilities are averaged over scales and flips.

    Raises:
        ValueError: for a number that is out of range.
    """

    window: int | None = None
    stride: int | None = None
    windows_at_once: int = 4
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    def __post_init__(self) -> None:
        if self.stride is not None and self.window is None:
            raise ValueError("stride is the distance between windows: window is needed too.")
        if self.window is not None and self.window < SMALLEST:
            raise ValueError(f"window is a side from {SMALLEST} pixels up; got {self.window}.")
        if self.window is not None and not 1 <= self.step <= self.window:
            raise ValueError(f"stride is 1 to the {self.window} pixels of the window; got {self.stride}.")
        if self.windows_at_once < 1:
            raise ValueError(f"windows_at_once is 1 or more; got {self.windows_at_once}.")
        if not self.scales or not all(0 < s <= 8 for s in self.scales):
            raise ValueError(f"scales are factors above 0 and at most 8; got {list(self.scales)}.")
        if not isinstance(self.flip, bool):
            raise ValueError(f"flip is True or False; got {self.flip!r}.")

    @property
    def step(self) -> int:
        """The stride in pixels; 0 without windows."""
        return self.stride if self.stride is not None else math.ceil((self.window or 0) * 2 / 3)


@torch.no_grad()
def segment(
    model: Segmenter,
    images: Tensor | Sequence[Tensor],
    sizes: Sequence[Sequence[int]],
    how: Inference | None = None,
) -> list[Tensor]:
    """The argmax class of every pixel, (height, width) int64 for each image.

    Args:
        model: in evaluation mode.
        images: (B, C, Hi, Wi) normalized, without padding; sides below 32 pixels are enlarged to 32. For several
            scales one tensor each, in order, preprocessed from the originals.
        sizes: height and width of each picture.
        how: None: one scale, without windows and flips.

    Raises:
        ValueError: unless there is one tensor of images per scale.
    """
    how = how or Inference()
    seen = [images] if isinstance(images, Tensor) else list(images)
    if len(seen) != len(how.scales):
        raise ValueError(f"images holds a batch for each of the {len(how.scales)} scales; got {len(seen)}.")
    views: list[tuple[Tensor, Sequence[int], bool]] = []
    for x in map(enlarged, seen):
        for mirrored in (False, True) if how.flip else (False,):
            views.append((_logits(model, x.flip(3) if mirrored else x, how), x.shape[2:], mirrored))
    return [
        most_probable([View(logits[i], seen, mirrored) for logits, seen, mirrored in views], size)
        for i, size in enumerate(sizes)
    ]


def _logits(model: Segmenter, images: Tensor, how: Inference) -> Tensor:
    """Images -> logits (B, K, h, w): on the grid of the head, or per pixel if windows are averaged."""
    if how.window is None:
        return model(images)
    B, _, height, width = images.shape
    corners = list(_corners((height, width), how.window, how.step))
    w = how.window
    total = images.new_zeros((B, model.num_classes, height, width), dtype=torch.float32)
    count = images.new_zeros((height, width), dtype=torch.float32)
    jobs = [(i, y, x) for y, x in corners for i in range(B)]
    for start in range(0, len(jobs), how.windows_at_once):
        part = jobs[start : start + how.windows_at_once]
        cut = torch.stack([images[i, :, y : y + w, x : x + w] for i, y, x in part])
        logits = resize(model(cut).float(), cut.shape[2:])
        for (i, y, x), scores in zip(part, logits, strict=True):
            total[i, :, y : y + w, x : x + w] += scores
    for y, x in corners:
        count[y : y + w, x : x + w] += 1
    return total.div_(count)


def _corners(size: Sequence[int], window: int, stride: int) -> Iterator[tuple[int, int]]:
    """Upper left corners (y, x) of windows that cover an image; the last of a row or column is aligned to the
    edge."""
    rows, columns = (
        [min(i * stride, max(0, side - window)) for i in range(max(0, -(-(side - window) // stride)) + 1)]
        for side in size
    )
    yield from ((y, x) for y in rows for x in columns)
