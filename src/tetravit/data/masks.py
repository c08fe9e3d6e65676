"""COCO's mask formats: polygons, run lengths (`counts`), and compressed run-length encoding (RLE).

Run lengths count pixels in column-major order, background and foreground in turn, background first. `encode_rle`
compresses them to the ASCII string of COCO files, `decode_rle` reads it back.

Shapes: (Hi, Wi) image in pixels.
Source: the formats of the COCO API (cocodataset/cocoapi, common/maskApi.c), which the results equal bit for bit.
"""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tetravit.boxes.pasting import THRESHOLD, paste, reach

FINER = 5  # polygons are rasterized on a grid this many times finer than the pixels
BITS, MORE, SIGN, FIRST = (
    5,
    0x20,
    0x10,
    48,
)  # a character: 5 value bits, the continuation bit, the ASCII offset
LONGEST = 7  # characters of the largest number: 35 bits


def polygon_mask(polygons: Iterable[np.ndarray], height: int, width: int) -> np.ndarray:
    """The union of polygons, each x1 y1 x2 y2 ... in pixels, -> bool (Hi, Wi)."""
    mask = np.zeros((width, height), dtype=bool)
    for polygon in polygons:
        columns, rows = _crossings(np.asarray(polygon, dtype=np.float64).reshape(-1, 2), height, width)
        if not len(columns):
            continue
        first, last = int(columns.min()), int(columns.max()) + 1
        # Each crossing switches between inside and outside; one below the last row switches at the next column's top.
        total = (last - first) * height
        at = np.sort((columns - first) * height + rows)
        mask[first:last] |= _runs(np.diff(at, prepend=0, append=total)).reshape(-1, height)
    return np.ascontiguousarray(mask.T)


def _crossings(points: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the outline through `points` (n, 2) crosses the middle of columns: column and first row below."""
    fine = np.trunc(FINER * points + 0.5).astype(np.int64)
    start, end = fine, np.roll(fine, -1, axis=0)
    steps = np.abs(end - start)
    length = steps.max(axis=1)  # an edge is rasterized along its longer side, corners included
    edge = np.repeat(np.arange(len(fine)), length + 1)
    walked = np.arange(len(edge)) - np.repeat(np.cumsum(length + 1) - (length + 1), length + 1)
    flat = steps[:, 0] >= steps[:, 1]
    long = np.where(flat, 0, 1)
    each = np.arange(len(fine))
    # An edge is rasterized in the direction of its growing long coordinate, whatever the order of its ends.
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
    """Run lengths, which add up to Hi * Wi, -> bool (Hi, Wi)."""
    return np.ascontiguousarray(_runs(counts).reshape(width, height).T)


def inside_columns(counts: np.ndarray, height: int) -> tuple[int, np.ndarray]:
    """Run lengths -> the first column with a pixel inside, and bool (Hi, w) from there to the last one.

    The cost of a small mask in a large image grows with the mask's columns, not with the image.
    """
    ends = np.cumsum(counts)[1::2]  # of the runs inside
    if not len(ends):
        return 0, np.zeros((height, 0), dtype=bool)
    first, last = int(counts[0]) // height, -(-int(ends[-1]) // height)
    part = counts[: 2 * len(ends)].copy()
    part[0] -= first * height
    part = np.append(part, last * height - ends[-1])
    return first, _runs(part).reshape(last - first, height).T


def _runs(counts: np.ndarray) -> np.ndarray:
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts)


def mask_counts(
    mask: Tensor, corner: tuple[int, int] = (0, 0), size: tuple[int, int] | None = None
) -> np.ndarray:
    """Run lengths of a mask.

    Args:
        mask: bool (h, w), a window of the image; everything outside it is background.
        corner: column and row of the window's first pixel in the image.
        size: (Hi, Wi) of the image; None: that of the mask.
    """
    height, width = size or (mask.shape[0], mask.shape[1])
    columns = F.pad(mask.T.to(torch.int8), (1, 1))  # (w, h + 2)
    turns = columns.diff(dim=1).nonzero()  # (n, 2): column and row, in the order of the runs
    at = ((turns[:, 0] + corner[0]) * height + turns[:, 1] + corner[1]).cpu().numpy()
    # A run of foreground that continues from the last row of a column to the first row of the next.
    same = np.flatnonzero(at[1:] == at[:-1])
    at = np.delete(at, np.concatenate((same, same + 1)))
    total = height * width
    edges = at if len(at) and at[-1] == total else np.append(at, total)
    return np.diff(edges, prepend=0)


def encode_pasted_masks(probabilities: Tensor, boxes: Tensor, size: tuple[int, int]) -> list[bytes]:
    """Mask probabilities (M, h, w) in boxes (M, 4) -> COCO RLE in an image of `size` (Hi, Wi), one mask at a time.

    Equals pasting, thresholding and encoding all masks, without holding one at the image's size.
    """
    windows = reach(boxes, size)
    return [
        encode_rle(mask_counts(paste(p, box, window) >= THRESHOLD, window[:2], size))
        for p, box, window in zip(probabilities.float(), boxes.float(), windows, strict=True)
    ]


def encode_masks(masks: Tensor) -> list[bytes]:
    """Masks bool (M, Hi, Wi) -> their compressed COCO RLE."""
    return [encode_rle(mask_counts(mask)) for mask in masks]


def encode_rle(counts: np.ndarray) -> bytes:
    """Run lengths -> compressed COCO RLE: differences to the previous run of the same kind, 5 bits per character."""
    values = counts.astype(np.int64)
    values[3:] -= counts[1:-2]
    step = np.arange(LONGEST) * BITS
    parts = values[:, None] >> step  # (n, LONGEST)
    # A character is the last of its number if the remaining bits only repeat the sign.
    ends = (parts >> BITS) == -((parts & SIGN) >> 4)
    last = ends.argmax(axis=1)
    place = np.arange(LONGEST)
    code = (parts & (MORE - 1)) | np.where(place < last[:, None], MORE, 0)
    return (code[place <= last[:, None]] + FIRST).astype(np.uint8).tobytes()


def decode_rle(text: bytes) -> np.ndarray:
    """Compressed COCO RLE -> run lengths.

    Raises:
        ValueError: if the text is not valid RLE, or a run is negative.
    """
    codes = np.frombuffer(text, dtype=np.uint8).astype(np.int64) - FIRST
    if not len(codes) or codes.min() < 0 or codes.max() >= 2 * MORE or codes[-1] & MORE:
        raise ValueError("the run lengths are invalid")
    ends = np.flatnonzero((codes & MORE) == 0)
    starts = np.concatenate(([0], ends[:-1] + 1))
    sizes = ends - starts + 1
    if sizes.max() > LONGEST:
        raise ValueError("the run lengths are invalid")
    place = np.arange(len(codes)) - np.repeat(starts, sizes)
    values = np.add.reduceat((codes & (MORE - 1)) << (BITS * place), starts)
    values -= np.where(codes[ends] & SIGN, np.int64(1) << (BITS * sizes), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    if values.min() < 0:
        raise ValueError("the run lengths are invalid")
    return values
