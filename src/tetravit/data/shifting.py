"""Shift each row or column of a picture by its own distance: shear and translation.

Source: Pillow 13, Geometry.c, `affine_transform` with `bicubic_filter32RGB` (a = -1, results truncated to integers),
bitwise equal. If only one coordinate changes, four of the sixteen samples have a weight, which takes a third less
time.

Shapes: L lines of N pixels (rows or columns).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class _Places(NamedTuple):
    """Source positions of the output pixels along their lines."""

    samples: np.ndarray  # (L, N + 3) int64: of each new pixel four samples in a row, held inside of the line
    part: np.ndarray  # (L or 1, N) float64: how far behind the second of its four it lies
    outside: np.ndarray  # (L or 1, N) bool: it lies outside of its line


def shifted_rows(pixels: np.ndarray, shifts: np.ndarray, fill: tuple[int, int, int]) -> np.ndarray:
    """Output row y at x is the input at x + shifts[y]; pixels of Pillow's bicubic affine transform.

    Args:
        pixels: (H, W, 3) uint8.
        shifts: (H,) float64, in pixels.
        fill: colour outside the picture.
    """
    height, width = pixels.shape[:2]
    places = _places(shifts, width)
    samples = _samples(pixels, places.samples + (np.arange(height) * width)[:, None])  # (H, (W + 3) * 3)
    taken = [samples[:, 3 * i : 3 * (i + width)] for i in range(4)]
    result = _bicubic(taken, np.repeat(places.part, 3, axis=1))
    _fill(result, fill, np.repeat(places.outside, 3, axis=1))
    return result.reshape(height, width, 3)


def shifted_columns(pixels: np.ndarray, shifts: np.ndarray, fill: tuple[int, int, int]) -> np.ndarray:
    """Output column x at y is the input at y + shifts[x]; see `shifted_rows`."""
    height, width = pixels.shape[:2]
    places = _places(shifts, height)
    rows = np.ascontiguousarray(places.samples.T) * width
    samples = _samples(pixels, rows + np.arange(width))  # (H + 3, W * 3)
    part, outside = (np.repeat(x.T, 3, axis=1) if len(x) > 1 else x.T for x in (places.part, places.outside))
    result = _bicubic([samples[i : i + height] for i in range(4)], part)
    _fill(result, fill, outside)
    return result.reshape(height, width, 3)


def _places(shifts: np.ndarray, size: int) -> _Places:
    whole = np.floor(shifts)
    samples = np.arange(-1, size + 2) + whole.astype(np.int64)[:, None]
    lines = slice(1 if (shifts == shifts[0]).all() else None)  # equal shifts share one line
    centres = (np.arange(size) + 0.5) + shifts[lines, None]
    part = (centres - 0.5) - (np.arange(size) + whole[lines, None])
    return _Places(samples.clip(0, size - 1), part, (centres < 0) | (centres >= size))


def _samples(pixels: np.ndarray, places: np.ndarray) -> Tensor:
    taken = np.take(pixels.reshape(-1, 3), places, axis=0)
    return torch.from_numpy(taken).to(torch.int16).flatten(1)


def _bicubic(samples: Sequence[Tensor], part: np.ndarray) -> np.ndarray:
    """uint8 between the second and third of four int16 samples, in the order of Pillow's arithmetic, in float64."""
    a, b, c, d = samples
    left, right, weight = a - b, c - d, torch.from_numpy(part)
    value = (left + right).neg_().to(torch.float64)
    for coefficient in (left.mul_(2).add_(right), c - a, b):
        value.mul_(weight).add_(coefficient)
    result: np.ndarray = value.clamp_(0, 255).to(torch.uint8).numpy()
    return result


def _fill(pixels: np.ndarray, fill: tuple[int, int, int], outside: np.ndarray) -> None:
    """pixels: (H, W * 3)."""
    if outside.any():
        np.copyto(pixels, np.tile(np.array(fill, dtype=np.uint8), pixels.shape[1] // 3), where=outside)
