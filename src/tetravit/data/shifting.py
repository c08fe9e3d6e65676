"""Rows or columns of a picture, each moved by its own distance: what shear and translation are.

Source: Pillow 13, Geometry.c, `affine_transform` with `bicubic_filter32RGB` (a = -1, the result cut to a whole
level). Where one coordinate alone changes, four of the sixteen samples have a weight: half of the time. A line has
one distance in place of one per pixel, so that a value which is whole but for rounding may be one level lower or
higher: fewer than one in 10,000.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def shifted_rows(pixels: np.ndarray, shifts: np.ndarray, fill: tuple[int, int, int]) -> np.ndarray:
    """Row y shows at x what was at x + shifts[y]; the pixels of Pillow's affine transform, bicubic.

    Args:
        pixels: (H, W, 3) uint8.
        shifts: (H,) float64, in pixels.
        fill: for what lies outside of the picture.
    """
    height, width = pixels.shape[:2]
    places, part = _places(shifts, width)
    places += (np.arange(height) * width)[:, None]
    samples = _samples(pixels, places)  # (H, (W + 3) * 3)
    result = _bicubic([samples[:, 3 * i : 3 * (i + width)] for i in range(4)], part[:, None])
    outside = np.repeat(_outside(shifts, width), 3, axis=1)
    np.copyto(result, np.tile(np.array(fill, dtype=np.uint8), width), where=outside)
    return result.reshape(height, width, 3)


def shifted_columns(pixels: np.ndarray, shifts: np.ndarray, fill: tuple[int, int, int]) -> np.ndarray:
    """Column x shows at y what was at y + shifts[x]; see `shifted_rows`."""
    height, width = pixels.shape[:2]
    places, part = _places(shifts, height)
    samples = _samples(pixels, np.ascontiguousarray(places.T) * width + np.arange(width))  # (H + 3, W * 3)
    result = _bicubic([samples[i : i + height] for i in range(4)], part.repeat_interleave(3))
    outside = np.repeat(_outside(shifts, height).T, 3, axis=1)
    np.copyto(result, np.tile(np.array(fill, dtype=np.uint8), width), where=outside)
    return result.reshape(height, width, 3)


def _places(shifts: np.ndarray, size: int) -> tuple[np.ndarray, Tensor]:
    """The places of the samples of each line, held inside of it, (lines, size + 3): four in a row for each new one.

    And how far behind the second of its four it lies, (lines,).
    """
    whole = np.floor(shifts)
    places = np.arange(-1, size + 2) + whole.astype(np.int64)[:, None]
    return places.clip(0, size - 1), torch.from_numpy(shifts - whole)


def _samples(pixels: np.ndarray, places: np.ndarray) -> Tensor:
    taken = np.take(pixels.reshape(-1, 3), places, axis=0)
    return torch.from_numpy(taken).to(torch.int16).flatten(1)


def _outside(shifts: np.ndarray, size: int) -> np.ndarray:
    """(lines, size) bool: whose sample lies outside of its line."""
    centres = (np.arange(size, dtype=np.float64) + 0.5) + shifts[:, None]
    result: np.ndarray = (centres < 0) | (centres >= size)
    return result


def _bicubic(samples: Sequence[Tensor], part: Tensor) -> np.ndarray:
    """uint8 between the second and third of four int16 samples, in the order of Pillow's arithmetic, in float64."""
    a, b, c, d = samples
    left, right = a - b, c - d
    value = (left + right).neg_().to(torch.float64)
    for coefficient in (left.mul_(2).add_(right), c - a, b):
        value.mul_(part).add_(coefficient)
    result: np.ndarray = value.clamp_(0, 255).to(torch.uint8).numpy()
    return result
