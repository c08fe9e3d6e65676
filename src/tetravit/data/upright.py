"""EXIF orientation: photographs that a camera stored rotated or mirrored.

Images are rotated upright in training, evaluation and prediction. Whether annotations fit the upright or the stored
pixels depends on the annotation tool: an option states it, and annotations of stored pixels are rotated with their
image. Orientations are EXIF's: 1 upright, 2 to 4 mirrored or upside down, 5 to 8 a quarter turn, which swaps height
and width.

Shapes: H, W of the stored pixels.
"""

import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from PIL import ExifTags, Image

Orientation = Literal["upright", "stored"]
ORIENTATIONS = ("upright", "stored")
QUARTER = 5  # the first orientation that swaps height and width
THREADS = 8
CURE = "data.options.orientation=upright or =stored says which"


def check_orientation(value: str | None) -> None:
    """Raises: ValueError for an unknown orientation of annotations."""
    if value is not None and value not in ORIENTATIONS:
        raise ValueError(f"orientation takes one of {', '.join(ORIENTATIONS)}; got {value!r}.")


def header(file: str | os.PathLike[str] | BinaryIO) -> tuple[int, int, int]:
    """Height and width of the upright image, and its orientation, from the header of a file; 0: unreadable."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(file) as image:
                width, height = image.size
                turn = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # the error is reported when the image is decoded
        return 0, 0, 0
    turn = turn if isinstance(turn, int) and 1 <= turn <= 8 else 1
    return (width, height, turn) if turn >= QUARTER else (height, width, turn)


def headers(folder: str | os.PathLike[str], names: Sequence[str]) -> np.ndarray:
    """(N, 3) height and width of the upright images, and their orientations; see `header`."""
    files = [os.path.join(folder, name) for name in names]
    if len(files) < 2 * THREADS:
        rows = list(map(header, files))
    else:
        with ThreadPoolExecutor(THREADS) as pool:
            rows = list(pool.map(header, files, chunksize=64))
    return np.array(rows, dtype=np.int32).reshape(-1, 3)


def turned_points(points: np.ndarray, turn: int, height: int, width: int) -> np.ndarray:
    """Points (..., 2), x and y in stored pixels of an image (H, W) -> in upright pixels."""
    x, y = points[..., 0], points[..., 1]
    if turn in (2, 3, 7, 8):
        x = width - x
    if turn in (3, 4, 6, 7):
        y = height - y
    return np.stack((y, x) if turn >= QUARTER else (x, y), axis=-1)


def turned_boxes(boxes: np.ndarray, turn: int, height: int, width: int) -> np.ndarray:
    """Boxes (M, 4) x1 y1 x2 y2, as `turned_points`."""
    corners = turned_points(boxes.reshape(-1, 2, 2), turn, height, width)
    return np.concatenate((corners.min(axis=1), corners.max(axis=1)), axis=1)


def turned_map(pixels: np.ndarray, turn: int) -> np.ndarray:
    """Stored pixels (H, W) or (H, W, C) -> upright pixels."""
    if turn in (2, 3, 7, 8):
        pixels = pixels[:, ::-1]
    if turn in (3, 4, 6, 7):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels.swapaxes(0, 1) if turn >= QUARTER else pixels)


def stored_size(turn: int, height: int, width: int) -> tuple[int, int]:
    """Height and width of the upright image -> those of the stored image."""
    return (width, height) if turn >= QUARTER else (height, width)


def ambiguous(turn: int) -> str:
    """Error message: annotations of a rotated image need an option."""
    return (
        f"EXIF orientation {turn} turns it, and its annotations may be of the stored or of the upright pixels;"
        f" {CURE}"
    )


def turned_error(
    name: str | Path, turn: int, count: int, total: int, noun: str = "annotations"
) -> ValueError:
    """Error message: a set with rotated images needs an option."""
    return ValueError(
        f"{count} of {total} images are turned by EXIF (the first: {str(name)!r}, orientation {turn}), and their"
        f" {noun} may be of the stored or of the upright pixels; {CURE}."
    )
