"""Annotations of many images in a few arrays: a million objects without Python objects.

Boxes, labels, polygons and run lengths are concatenated; workers share their memory.

Shapes: N images, M objects.
"""

import math
import os
from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np

from tetravit.data.masks import counts_mask, polygon_mask
from tetravit.data.problems import Problems
from tetravit.rle import decode_rle, encode_rle

EXACT = 100  # coordinates with two decimals are stored as integer hundredths
FROM_SIDES = -1.0  # marks objects without an annotated area, for which the box area is used
OUTSIDE = 4  # how far polygons may extend beyond their image, in longer sides
LARGEST = 100_000  # pixels per side; the runs of larger masks overflow COCO's RLE


class ObjectTable:
    """An append-only builder: call `image` and `add`, then `close` before reading.

    Objects may be added in any order of their images.

    Args:
        shares: whether boxes and polygons are normalized to 0..1, not in pixels.

    After `close`: ids (N,) as annotated; sizes (N, 2) annotated height and width, 0 if missing; boxes (M, 4), labels,
    areas and crowds (M,). Names are relative to a folder.
    """

    def __init__(self, *, shares: bool = False) -> None:
        self.problems = Problems()
        self.shares = shares
        self._text, self._ends = bytearray(), array("q")
        self._ids, self._sizes = array("q"), array("i")
        self._image, self._label, self._crowd = array("q"), array("i"), bytearray()
        self._box, self._area = array("d"), array("d")
        self._values: Any = array("d")  # coordinates of all polygons
        self._parts, self._values_end = (
            array("q"),
            array("q"),
        )  # cumulative counts of polygons and of coordinates
        self._codes, self._codes_end = bytearray(), array("q")

    def image(self, name: str, image_id: int, height: int = 0, width: int = 0) -> int:
        """Add an image; returns its row."""
        self._text += os.fsencode(name)
        self._ends.append(len(self._text))
        self._ids.append(image_id)
        self._sizes.extend((height, width))
        return len(self._ids) - 1

    def add(
        self,
        row: int,
        box: Sequence[float],
        label: int,
        *,
        area: float = FROM_SIDES,
        crowd: bool = False,
        polygons: Sequence[Sequence[float]] = (),
        code: bytes = b"",
    ) -> None:
        """Add an object of image `row`: box x1 y1 x2 y2, its mask as polygons or as compressed COCO RLE."""
        self._image.append(row)
        self._box.extend(box)
        self._label.append(label)
        self._area.append(area)
        self._crowd.append(crowd)
        for polygon in polygons:
            self._values.extend(polygon)
            self._values_end.append(len(self._values))
        self._parts.append(len(self._values_end))
        self._codes += code
        self._codes_end.append(len(self._codes))

    def close(self) -> "ObjectTable":
        """Sort by image, and free the buffers of the builder."""
        image = np.frombuffer(self._image, dtype=np.int64) if self._image else np.empty(0, np.int64)
        self.order = np.argsort(image, kind="stable")
        self.starts = np.searchsorted(image[self.order], np.arange(len(self._ids) + 1))
        self.ids = np.array(self._ids, dtype=np.int64)
        self.sizes = np.array(self._sizes, dtype=np.int32).reshape(-1, 2)
        self.boxes = np.array(self._box, dtype=np.float64).reshape(-1, 4)
        self.labels = np.array(self._label, dtype=np.int32)
        self.areas = np.array(self._area, dtype=np.float64)
        self.crowds = np.frombuffer(bytes(self._crowd), dtype=bool)
        values = np.array(self._values, dtype=np.float64)
        hundredths = np.rint(values * EXACT)
        exact = bool((np.abs(hundredths) < 2**31).all() and (hundredths / EXACT == values).all())
        self._values = hundredths.astype(np.int32) if exact else values
        self._parts_end = np.array(self._parts, dtype=np.int64)
        self._value_ends = np.array(self._values_end, dtype=np.int64)
        self._code_ends = np.array(self._codes_end, dtype=np.int64)
        del (
            self._image,
            self._box,
            self._label,
            self._area,
            self._crowd,
            self._parts,
            self._values_end,
            self._codes_end,
        )
        self._text, self._codes = bytes(self._text), bytes(self._codes)  # type: ignore[assignment]
        self._name_ends = np.array(self._ends, dtype=np.int64)
        return self

    def __len__(self) -> int:
        return len(self._ids)

    def name(self, row: int) -> str:
        start = self._name_ends[row - 1] if row else 0
        return os.fsdecode(bytes(self._text[start : self._name_ends[row]]))

    def objects(self, row: int) -> np.ndarray:
        """Indices of an image's objects, in insertion order."""
        return self.order[self.starts[row] : self.starts[row + 1]]

    @property
    def images(self) -> np.ndarray:
        """The image row of each object (M,)."""
        rows = np.empty(len(self.boxes), dtype=np.int64)
        rows[self.order] = np.repeat(np.arange(len(self)), np.diff(self.starts))
        return rows

    @property
    def masked(self) -> np.ndarray:
        """Whether each object has a mask, bool (M,)."""
        parts, codes = (np.diff(ends, prepend=0) > 0 for ends in (self._parts_end, self._code_ends))
        return parts | codes

    def segmentation(self, k: int, height: int, width: int) -> Any:
        """The mask of object `k` in COCO's format, polygons or run lengths; None: no mask."""
        codes = self._codes[self._code_ends[k - 1] if k else 0 : self._code_ends[k]]
        if codes:
            return {"size": [height, width], "counts": bytes(codes).decode("ascii")}
        polygons = self._polygons(k, height, width)
        return polygons and [polygon.tolist() for polygon in polygons]

    def _polygons(self, k: int, height: int, width: int) -> list[np.ndarray] | None:
        """Polygons of object `k` in pixels; None: none."""
        first, last = (int(self._parts_end[k - 1]) if k else 0), int(self._parts_end[k])
        if first == last:
            return None
        ends = self._value_ends[first:last]
        begin = int(self._value_ends[first - 1]) if first else 0
        values = self._values[begin : ends[-1]]
        values = values / EXACT if values.dtype == np.int32 else values
        if self.shares:
            values = values * np.tile([width, height], len(values) // 2)
        return np.split(values, ends[:-1] - begin)

    def mask(self, row: int, k: int, height: int, width: int) -> np.ndarray | None:
        """The mask of object `k` of image `row`, bool (Hi, Wi); None: no mask."""
        codes = self._codes[self._code_ends[k - 1] if k else 0 : self._code_ends[k]]
        if codes:
            return counts_mask(decode_rle(bytes(codes)), height, width)
        polygons = self._polygons(k, height, width)
        return None if polygons is None else polygon_mask(polygons, height, width)


def check_box(box: Any) -> str | None:
    """The fault of a box x1 y1 x2 y2, as a cause for `Problems`; None: it is valid."""
    if not np.isfinite(box).all():
        return "boxes with sides that are NaN or infinite, left out"
    if box[2] <= box[0] or box[3] <= box[1]:
        return "boxes with zero or negative sides, left out"
    return None


def check_polygon(polygon: Sequence[float], longest: float) -> str | None:
    """The fault of a polygon x1 y1 x2 y2 ... in an image with that longer side, for `Problems`; None: valid."""
    if len(polygon) < 6 or len(polygon) % 2 or not math.isfinite(sum(polygon)):
        return "polygons of fewer than three points, or without numbers, left out"
    if min(polygon) < -OUTSIDE * longest or max(polygon) > (1 + OUTSIDE) * longest:
        return "polygons that reach far outside their image, left out"
    return None


def runs(segmentation: dict[str, Any], height: int, width: int, *, turned: bool = False) -> bytes:
    """Run lengths of an annotation, given as counts or RLE text, checked -> compressed COCO RLE.

    turned: accept swapped sides, because the image may be rotated.

    Raises:
        ValueError: if their size is not that of the image, or they are invalid.
    """
    if segmentation.get("size") not in ([height, width], *([[width, height]] if turned else ())):
        raise ValueError("of another size")
    given = segmentation.get("counts")
    try:
        counts = (
            decode_rle(given.encode("ascii")) if isinstance(given, str) else np.asarray(given, dtype=np.int64)
        )
    except (ValueError, TypeError, OverflowError):
        raise ValueError("that are invalid") from None
    pixels = height * width
    if counts.ndim != 1 or ((counts < 0) | (counts > pixels)).any() or counts.sum() != pixels:
        raise ValueError("of another size")
    return encode_rle(counts)
