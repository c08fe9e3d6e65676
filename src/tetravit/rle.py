"""COCO's run-length encoding (RLE) of masks.

Run lengths (`counts`) count pixels in column-major order, alternating background and foreground, background first.
`encode_rle` compresses them to the ASCII string of COCO files, `decode_rle` is its inverse.

Source: the formats of the COCO API (cocodataset/cocoapi, common/maskApi.c), with bitwise equal results.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

# A character: 5 value bits, the continuation bit, the ASCII offset.
BITS, MORE, SIGN, FIRST = 5, 0x20, 0x10, 48
LONGEST = 7  # characters of the largest number: 35 bits


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
