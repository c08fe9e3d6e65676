"""COCO's mask formats: polygons and run lengths (see `rle.py`) as masks, and predicted masks as RLE of the image.

Shapes: (Hi, Wi) image in pixels.
Source: the formats of the COCO API (cocodataset/cocoapi, common/maskApi.c); results are bitwise equal.
"""

from collections.abc import Iterable

import numpy as np
from torch import Tensor

from tetravit.boxes.pasting import THRESHOLD, paste, reach
from tetravit.rle import encode_rle, mask_counts

FINER = 5  # subpixels per pixel when rasterizing polygons


def polygon_mask(polygons: Iterable[np.ndarray], height: int, width: int) -> np.ndarray:
    """The union of polygons, each x1 y1 x2 y2 ... in pixels, -> bool (Hi, Wi)."""
    mask = np.zeros((width, height), dtype=bool)
    for polygon in polygons:
        columns, rows = _crossings(np.asarray(polygon, dtype=np.float64).reshape(-1, 2), height, width)
        if not len(columns):
            continue
        first, last = int(columns.min()), int(columns.max()) + 1
        # Each crossing toggles inside and outside; one below the last row toggles at the top of the next column.
        total = (last - first) * height
        at = np.sort((columns - first) * height + rows)
        mask[first:last] |= _runs(np.diff(at, prepend=0, append=total)).reshape(-1, height)
    return np.ascontiguousarray(mask.T)


def _crossings(points: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Crossings of the outline through `points` (n, 2) with column centres: column and first row below."""
    fine = np.trunc(FINER * points + 0.5).astype(np.int64)
    start, end = fine, np.roll(fine, -1, axis=0)
    steps = np.abs(end - start)
    length = steps.max(axis=1)  # an edge is rasterized along its longer side, corners included
    edge = np.repeat(np.arange(len(fine)), length + 1)
    walked = np.arange(len(edge)) - np.repeat(np.cumsum(length + 1) - (length + 1), length + 1)
    flat = steps[:, 0] >= steps[:, 1]
    long = np.where(flat, 0, 1)
    each = np.arange(len(fine))
    # An edge is rasterized in the direction in which its long coordinate grows, whatever the order of its ends.
    back = start[each, long] > end[each, long]
    low, high = np.where(back[:, None], end, start), np.where(back[:, None], start, end)
    slope = (high[each, 1 - long] - low[each, 1 - long]) / np.maximum(length, 1)
    along = np.where(back[edge], length[edge] - walked, walked)
    there = low[each, long][edge] + along
    across = np.trunc(low[each, 1 - long][edge] + slope[edge] * along + 0.5).astype(np.int64)
    u, v = np.where(flat[edge], there, across), np.where(flat[edge], across, there)

    moved = np.flatnonzero(u[1:] != u[:-1]) + 1
    x = (np.minimum(u[moved], u[moved - 1]) + 0.5) / FINER - 0.5
    y = (np.minimum(v[moved], v[moved - 1]) + 0.5) / FINER - 0.5
    middle = (np.floor(x) == x) & (x >= 0) & (x <= width - 1)
    return x[middle].astype(np.int64), np.ceil(np.clip(y[middle], 0, height)).astype(np.int64)


def counts_mask(counts: np.ndarray, height: int, width: int) -> np.ndarray:
    """Run lengths with the sum Hi * Wi -> bool (Hi, Wi)."""
    return np.ascontiguousarray(_runs(counts).reshape(width, height).T)


def inside_columns(counts: np.ndarray, height: int) -> tuple[int, np.ndarray]:
    """Run lengths -> the first column of the mask, and bool (Hi, w) from there to its last column.

    The cost depends on the columns of the mask, not on the size of the image.
    """
    ends = np.cumsum(counts)[1::2]  # ends of foreground runs
    if not len(ends):
        return 0, np.zeros((height, 0), dtype=bool)
    first, last = int(counts[0]) // height, -(-int(ends[-1]) // height)
    part = counts[: 2 * len(ends)].copy()
    part[0] -= first * height
    part = np.append(part, last * height - ends[-1])
    return first, _runs(part).reshape(last - first, height).T


def _runs(counts: np.ndarray) -> np.ndarray:
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts)


def encode_pasted_masks(probabilities: Tensor, boxes: Tensor, size: tuple[int, int]) -> list[bytes]:
    """Mask probabilities (M, h, w) in boxes (M, 4) -> COCO RLE in an image of `size` (Hi, Wi), one mask at a time.

    Equals pasting, thresholding and encoding all masks, without a full-size mask per object.
    """
    windows = reach(boxes, size)
    return [
        encode_rle(mask_counts(paste(p, box, window) >= THRESHOLD, window[:2], size))
        for p, box, window in zip(probabilities.float(), boxes.float(), windows, strict=True)
    ]
