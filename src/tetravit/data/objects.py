"""The objects of many images in a few arrays: a million of them take the room of their numbers.

Boxes and labels, polygons and run lengths stand end to end, so that no Python object remains of an annotation and
workers share the memory. What cannot be used is left out and counted.

Shapes: N images, M objects of an image.
"""

import logging
import math
import os
from array import array
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import torch

from tetravit.data.datasets.base import Dataset, DatasetInfo, Split
from tetravit.data.decode import BadImage, decode
from tetravit.data.masks import counts_mask, counts_of, letters, polygon_mask
from tetravit.data.problems import Problems
from tetravit.structures import Sample, Target

LOG = logging.getLogger("tetravit.data")
SHORTEST = 32  # pixels: training images with shorter sides are left out, as in the papers' releases
EXACT = 100  # coordinates with two decimals are kept as whole hundredths
FROM_SIDES = -1.0  # the area of an object whose annotation has none: that of its box
OUTSIDE = 4  # polygons, walked pixel by pixel, may reach so many of the longer side beyond their image
LARGEST = 100_000  # pixels of a side: the runs of larger masks overflow COCO's letters

WITHOUT_MASK = 'objects without a mask, left out (masks = "skip" keeps them)'

Empty = Literal["drop", "keep"]


class ObjectTable:
    """Grows by `image` and `add`; after `close` it answers. Objects may come in any order of their images.

    names: of the images, relative to a folder. sizes: (N, 2) height and width, 0 where it is not known before the
    image is read: boxes and polygons are then shares of it. ids: (N,) as in the annotations.
    """

    def __init__(self) -> None:
        self.problems = Problems()
        self._text, self._ends = bytearray(), array("q")
        self._ids, self._sizes = array("q"), array("i")
        self._image, self._label, self._crowd = array("q"), array("i"), bytearray()
        self._box, self._area = array("d"), array("d")
        self._values: Any = array("d")  # coordinates of all polygons
        self._parts, self._values_end = array("q"), array("q")  # polygons so far; coordinates so far
        self._codes, self._codes_end = bytearray(), array("q")

    def image(self, name: str, image_id: int, height: int = 0, width: int = 0) -> int:
        """A new image; its row."""
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
        """An object of image `row`: box x1 y1 x2 y2, its mask as polygons or as run lengths in letters."""
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
        """Sort by image, and let go of what only growing needs."""
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
        """The numbers of an image's objects, in the order they came."""
        return self.order[self.starts[row] : self.starts[row + 1]]

    @property
    def images(self) -> np.ndarray:
        """The row of each object's image (M,)."""
        rows = np.empty(len(self.boxes), dtype=np.int64)
        rows[self.order] = np.repeat(np.arange(len(self)), np.diff(self.starts))
        return rows

    @property
    def masked(self) -> np.ndarray:
        """Which objects have a mask, bool (M,)."""
        parts, codes = (np.diff(ends, prepend=0) > 0 for ends in (self._parts_end, self._code_ends))
        return parts | codes

    def mask(self, row: int, k: int, height: int, width: int) -> np.ndarray | None:
        """The mask of object `k` of image `row`, bool (Hi, Wi); None: it has none."""
        codes = self._codes[self._code_ends[k - 1] if k else 0 : self._code_ends[k]]
        if codes:
            return counts_mask(counts_of(bytes(codes)), height, width)
        first, last = (int(self._parts_end[k - 1]) if k else 0), int(self._parts_end[k])
        if first == last:
            return None
        ends = self._value_ends[first:last]
        begin = int(self._value_ends[first - 1]) if first else 0
        values = self._values[begin : ends[-1]]
        values = values / EXACT if values.dtype == np.int32 else values
        if not self.sizes[row].all():
            values = values * np.tile([width, height], len(values) // 2)  # shares of the image
        return polygon_mask(np.split(values, ends[:-1] - begin), height, width)


class ObjectSet(Dataset):
    """Images with objects, as a table describes them. What the layouts build on.

    Args:
        folder: what the names in the table are relative to.
        table: closed.
        class_names: one per label.
        split: images to train on are chosen as in the papers' releases: sides of 32 pixels or more, at least one
            object that is no crowd (unless `empty` is "keep"), objects of a pixel or more.
        masks: "read" them, or "skip" them to save time. Where they are read, an object without one is left out,
            unless no object of the set has one: then targets have no masks.

    `problems` says what was left out.

    Raises:
        ValueError: if nothing is left.
    """

    kind = "detect"
    needs_root = True

    def __init__(
        self,
        folder: Path,
        table: ObjectTable,
        class_names: Sequence[str],
        split: Split,
        *,
        empty: Empty = "drop",
        masks: Literal["read", "skip"] = "read",
    ) -> None:
        for name, value, known in (("empty", empty, ("drop", "keep")), ("masks", masks, ("read", "skip"))):
            if value not in known:
                raise ValueError(f"{name} takes one of {', '.join(known)}; got {value!r}.")
        self.folder, self.table, self.split, self.masks = folder, table, split, masks
        self.class_names, self.num_classes = tuple(class_names), len(class_names)
        self.problems = table.problems
        masked = table.masked
        self.has_masks = masks == "read" and bool(masked.any() or not len(masked))
        self._bare = ~masked if self.has_masks and not masked.all() else None
        if self._bare is not None:
            images = table.images
            for k in np.flatnonzero(self._bare):
                self.problems.add(WITHOUT_MASK, table.name(int(images[k])))
        kept = np.arange(len(table))
        if split == "train":
            large = (table.sizes == 0).any(axis=1) | (table.sizes.min(axis=1, initial=SHORTEST) >= SHORTEST)
            usable = self._usable() & ~table.crowds
            holding = np.bincount(table.images, weights=usable, minlength=len(table)) > 0
            wanted = holding | (empty == "keep")
            self._count(~large, f"images with a side under {SHORTEST} pixels, left out")
            self._count(large & ~wanted, "images without an object to train on, left out")
            kept = kept[large & wanted]
        if not len(kept):
            raise ValueError(
                f"No image in {str(folder)!r} has an object to {'train on' if split == 'train' else 'find'}."
            )
        self.rows = kept
        for line in (
            self.problems.lines() if split == "val" else ()
        ):  # a run tells those of training in its plan
            LOG.warning("%s: %s.", folder, line)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def info(self) -> DatasetInfo:
        return replace(super().info, problems=tuple(self.problems.lines()), wide=self.wide)

    @property
    def wide(self) -> np.ndarray | None:
        """Which images are wider than high; None: their sizes are not known before they are read."""
        sizes = self.table.sizes[self.rows]
        return None if (sizes == 0).any() else sizes[:, 1] > sizes[:, 0]

    def __getitem__(self, index: int) -> Sample:
        row = int(self.rows[index])
        name = self.table.name(row)
        path = os.path.join(self.folder, name)
        image = decode(path, layout="decoded")
        size = (image.shape[1], image.shape[2])
        wanted = tuple(self.table.sizes[row].tolist())
        if 0 not in wanted and size != wanted:
            raise BadImage(
                path,
                f"it has {size[1]} x {size[0]} pixels; its annotations are for {wanted[1]} x {wanted[0]}",
            )
        return Sample(image, self.target(index, size), path)

    def target(self, index: int, size: tuple[int, int]) -> Target:
        """The objects of an image of `size` (height, width)."""
        table, row = self.table, int(self.rows[index])
        which = table.objects(row)
        if self._bare is not None:
            which = which[~self._bare[which]]
        boxes = table.boxes[which]
        if not table.sizes[row].all():
            boxes = boxes * np.array([size[1], size[0]] * 2)  # shares of the image
        if self.split == "train":
            boxes = boxes.clip(0, np.array([size[1], size[0]] * 2))
            large = (boxes[:, 2:] - boxes[:, :2] >= 1).all(axis=1) & (table.areas[which] != 0)
            which, boxes = which[large], boxes[large]
        masks = None
        if self.has_masks:
            found = [table.mask(row, int(k), *size) for k in which]
            masks = torch.from_numpy(np.stack(found) if found else np.zeros((0, *size), bool))  # type: ignore[arg-type]
        areas = table.areas[which]
        sides = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
        return Target(
            boxes=torch.from_numpy(boxes).float(),
            labels=torch.from_numpy(table.labels[which]).long(),
            masks=masks,
            crowd=torch.from_numpy(table.crowds[which].copy()),
            area=torch.from_numpy(np.where(areas < 0, sides, areas)).float(),
            image_id=int(table.ids[row]),
            size=size,
        )

    def _count(self, rows: np.ndarray, cause: str) -> None:
        """Add the images that `rows` (N,) marks to the problems."""
        for row in np.flatnonzero(rows):
            self.problems.add(cause, self.table.name(int(row)))

    def _usable(self) -> np.ndarray:
        """Which objects (M,) train: of a pixel or more inside their image, as far as its size is known."""
        boxes = self.table.boxes
        sizes = self.table.sizes[self.table.images][:, ::-1].astype(np.float64)
        known = (sizes > 0).all(axis=1)
        limits = np.where(known[:, None], np.tile(sizes, 2), np.inf)
        clipped = np.minimum(boxes.clip(0), limits)
        sides = clipped[:, 2:] - clipped[:, :2]
        usable = np.where(known, (sides >= 1).all(axis=1), True) & (self.table.areas != 0)
        return usable if self._bare is None else usable & ~self._bare


def check_name(name: Any, where: str) -> str:
    """A file name from annotations that stays inside its folder.

    Raises:
        ValueError: for a URL, an absolute path, one that leads out, or what is no text of a file system.
    """
    if not isinstance(name, str) or not name or "\0" in name or not _encodes(name):
        raise ValueError(f"{where}: file_name is a path below the image folder; got {name!r}.")
    parts = PurePosixPath(name.replace("\\", "/"))
    if "://" in name or parts.is_absolute() or ".." in parts.parts or ":" in name.split("/")[0]:
        raise ValueError(f"{where}: file_name is a path below the image folder; got {name!r}.")
    return name


def _encodes(name: str) -> bool:
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return True


def check_box(box: Any) -> str | None:
    """What is wrong with a box x1 y1 x2 y2, as a cause to count; None: nothing."""
    if not np.isfinite(box).all():
        return "boxes with sides that are NaN or infinite, left out"
    if box[2] <= box[0] or box[3] <= box[1]:
        return "boxes with zero or negative sides, left out"
    return None


def check_polygon(polygon: Sequence[float], longest: float) -> str | None:
    """What is wrong with the corners x1 y1 x2 y2 ... in an image of that longer side, as a cause to count."""
    if len(polygon) < 6 or len(polygon) % 2 or not math.isfinite(sum(polygon)):
        return "polygons of fewer than three points, or without numbers, left out"
    if min(polygon) < -OUTSIDE * longest or max(polygon) > (1 + OUTSIDE) * longest:
        return "polygons that reach far outside their image, left out"
    return None


def runs(segmentation: dict[str, Any], height: int, width: int) -> bytes:
    """The run lengths of an annotation, counts or letters, checked, as letters.

    Raises:
        ValueError: if they are not for an image of this size, or do not read.
    """
    if segmentation.get("size") != [height, width]:
        raise ValueError("of another size")
    given = segmentation.get("counts")
    try:
        counts = (
            counts_of(given.encode("ascii")) if isinstance(given, str) else np.asarray(given, dtype=np.int64)
        )
    except (ValueError, TypeError, OverflowError):
        raise ValueError("that do not read") from None
    pixels = height * width
    if counts.ndim != 1 or ((counts < 0) | (counts > pixels)).any() or counts.sum() != pixels:
        raise ValueError("of another size")
    return letters(counts)
