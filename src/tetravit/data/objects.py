"""The objects of many images in a few arrays: a million of them take the room of their numbers.

Boxes and labels, polygons and run lengths stand end to end, so that no Python object remains of an annotation and
workers share the memory. What cannot be used is left out and counted.

Shapes: N images, M objects of an image.
"""

import logging
import math
import os
from array import array
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from tetravit.data.datasets.base import Dataset, DatasetInfo, Split
from tetravit.data.decode import BadImage, decode, file_bytes, orientation
from tetravit.data.files import UNREADABLE, ending
from tetravit.data.lookup import Lookup
from tetravit.data.masks import counts_mask, counts_of, letters, polygon_mask
from tetravit.data.parts import Place
from tetravit.data.problems import Problems
from tetravit.data.upright import (
    QUARTER,
    Orientation,
    ambiguous,
    check_orientation,
    headers,
    stored_size,
    turned_boxes,
    turned_error,
    turned_map,
)
from tetravit.structures import Sample, Target

LOG = logging.getLogger("tetravit.data")
SHORTEST = 32  # pixels: training images with shorter sides are left out, as in the papers' releases
EXACT = 100  # coordinates with two decimals are kept as whole hundredths
FROM_SIDES = -1.0  # the area of an object whose annotation has none: that of its box
OUTSIDE = 4  # polygons, walked pixel by pixel, may reach so many of the longer side beyond their image
LARGEST = 100_000  # pixels of a side: the runs of larger masks overflow COCO's letters

SAMPLE = 1000  # images whose heads are read at the start, to see whether any is turned

WITHOUT_MASK = "objects without a mask, left out; data.options.masks=skip keeps them"
CROWDS = "crowds or difficult objects, evaluated but not trained on"
TINY = "objects of less than a pixel inside their image, not trained on"

Empty = Literal["drop", "keep"]
Masks = Literal["read", "skip"]
Missing = Literal["error", "skip"]


class ObjectTable:
    """An append-only builder: call `image` and `add`, then `close`, before anything is read from it.

    Objects may come in any order of their images.

    Args:
        shares: whether boxes and polygons are shares of their image, not pixels.

    After `close`: ids (N,) as in the annotations; sizes (N, 2) height and width as the annotations have them, 0 where
    they have none; boxes (M, 4), labels, areas and crowds (M,). Names are relative to a folder.
    """

    def __init__(self, *, shares: bool = False) -> None:
        self.problems = Problems()
        self.shares = shares
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
        """Sort by image, and release the buffers of the builder."""
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
        if self.shares:
            values = values * np.tile([width, height], len(values) // 2)
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
        orientation: which pixels the annotations of images are of that EXIF turns, "upright" or "stored"; None: such
            images are refused, unless their annotated size tells.

    `problems` says what was left out.

    Raises:
        ValueError: if nothing is left, with every cause; or if images are turned and nobody says how.
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
        masks: Masks = "read",
        orientation: Orientation | None = None,
    ) -> None:
        check_options(empty=empty, masks=masks, orientation=orientation)
        self.folder, self.table, self.split, self.masks = folder, table, split, masks
        self.orientation = orientation
        self.class_names, self.num_classes = tuple(class_names), len(class_names)
        self.problems = table.problems
        self._sizes, turns = self._known_sizes()
        self._check_turned(turns)
        masked = table.masked
        self.has_masks = masks == "read" and bool(masked.any() or not len(masked))
        self._bare = ~masked if self.has_masks and not masked.all() else None
        if self._bare is not None:
            self._count_objects(self._bare, WITHOUT_MASK)
        kept = np.arange(len(table))
        if split == "train":
            kept = self._trained_on(empty)
        if not len(kept):
            causes = "; ".join(self.problems.lines()) or "its annotations list none"
            raise ValueError(
                f"No image in {str(folder)!r} has an object to train on: {causes}."
                if split == "train"
                else f"There is no image in {str(folder)!r} to evaluate on: {causes}."
            )
        self.rows = kept
        self.counts = np.bincount(table.labels[~table.crowds], minlength=self.num_classes)
        lines = self.problems.lines() if split != "train" else []  # a run says those of training in its plan
        if split != "train" and not self.counts.any():
            lines.append(f"none of the {len(table):,} images has an object: there is nothing to score")
        for line in lines:
            LOG.warning("%s: %s.", folder, line)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def info(self) -> DatasetInfo:
        table = self.table
        mine = np.isin(table.images, self.rows) & ~table.crowds
        return replace(
            super().info,
            problems=tuple(self.problems.lines()),
            wide=self.wide,
            counts=self.counts,
            most_objects=int(np.bincount(table.images[mine]).max(initial=0)),
            strata=self._strata(),
        )

    def key(self, index: int) -> str:
        return self.table.name(int(self.rows[index]))

    def _strata(self) -> np.ndarray:
        """(N,) the rarest class of each image; `num_classes` where it has no object."""
        table = self.table
        by_count = np.argsort(np.argsort(self.counts, kind="stable"), kind="stable")  # 0: the rarest
        ranks = np.full(len(table), self.num_classes, dtype=np.int64)
        np.minimum.at(ranks, table.images, by_count[table.labels])
        classes = np.append(np.argsort(by_count, kind="stable"), self.num_classes)
        return np.asarray(classes[ranks][self.rows])

    @property
    def wide(self) -> np.ndarray | None:
        """Which images are wider than high; None: their sizes are not known before they are read."""
        sizes = self._sizes[self.rows]
        return None if (sizes == 0).any() else sizes[:, 1] > sizes[:, 0]

    def __getitem__(self, index: int) -> Sample:
        row = int(self.rows[index])
        path = os.path.join(self.folder, self.table.name(row))
        data = file_bytes(path)
        image = decode(data, name=path, layout="decoded")
        size = (image.shape[1], image.shape[2])
        turn = orientation(data, path)
        if len(self.table.objects(row)):
            self._check_size(path, size, turn, tuple(self.table.sizes[row].tolist()))
        return Sample(image, self.target(index, size, turn), path)

    def target(self, index: int, size: tuple[int, int], turn: int = 1) -> Target:
        """The objects of an upright image of `size` (height, width), which EXIF turned as `turn` says."""
        table, row = self.table, int(self.rows[index])
        turn = turn if self.orientation == "stored" else 1
        stored = stored_size(turn, *size)  # of the pixels that the annotations are of
        which = table.objects(row)
        if self._bare is not None:
            which = which[~self._bare[which]]
        boxes = table.boxes[which]
        if table.shares:
            boxes = boxes * np.array([stored[1], stored[0]] * 2)
        if turn != 1:
            boxes = turned_boxes(boxes, turn, *stored)
        if self.split == "train":
            boxes = boxes.clip(0, np.array([size[1], size[0]] * 2))
            large = (boxes[:, 2:] - boxes[:, :2] >= 1).all(axis=1)
            which, boxes = which[large], boxes[large]
        masks = None
        if self.has_masks:
            each = [table.mask(row, int(k), *stored) for k in which]
            if turn != 1:
                each = [turned_map(mask, turn) for mask in each if mask is not None]
            masks = torch.from_numpy(np.stack(each) if each else np.zeros((0, *size), bool))  # type: ignore[arg-type]
        areas = table.areas[which]
        sides = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
        return Target(
            boxes=torch.from_numpy(boxes).float(),
            labels=torch.from_numpy(table.labels[which]).long(),
            masks=masks,
            crowd=torch.from_numpy(table.crowds[which].copy()),
            area=torch.from_numpy(np.where(areas <= 0, sides, areas)).float(),
            image_id=int(table.ids[row]),
            size=size,
        )

    def _known_sizes(self) -> tuple[np.ndarray, np.ndarray]:
        """(N, 2) sizes of the upright images, 0 where not known; (N,) their orientations, 0 where not looked up.

        The heads of files are read where annotations have no sizes and those are needed (to train: for the order of
        images, and to leave out small ones), where annotations may be of turned images, and of a sample otherwise.
        """
        table = self.table
        sizes, turns = table.sizes.copy(), np.zeros(len(table), dtype=np.int32)
        unknown = (sizes == 0).any(axis=1) & (self.split == "train")
        step = max(1, -(-len(table) // SAMPLE))
        sample = np.arange(len(table)) % step == 0
        rows = np.flatnonzero(unknown | sample if self.orientation is None else np.ones(len(table), bool))
        read = headers(self.folder, [table.name(int(row)) for row in rows])
        turns[rows] = read[:, 2]
        fill = unknown[rows] | ((read[:, 2] >= QUARTER) & (self.orientation is not None))
        sizes[rows[fill]] = read[fill, :2]
        self._read_sizes = np.zeros_like(sizes)
        self._read_sizes[rows] = read[:, :2]
        return sizes, turns

    def _check_turned(self, turns: np.ndarray) -> None:
        """Raises: ValueError if images are turned, and nothing says which pixels their annotations are of."""
        if self.orientation is not None:
            return
        turned = turns > 1
        given, upright = self.table.sizes, self._read_sizes
        tells = (turns >= QUARTER) & (given == upright).all(axis=1) & (upright[:, 0] != upright[:, 1])
        held = np.zeros(len(turns), bool)
        held[self.table.images] = True
        unclear = np.flatnonzero(turned & ~tells & held)  # an image without objects is the same either way
        if len(unclear):
            row = int(unclear[0])
            raise turned_error(self.table.name(row), int(turns[row]), len(unclear), int((turns > 0).sum()))

    def _check_size(self, path: str, size: tuple[int, int], turn: int, given: tuple[int, ...]) -> None:
        """Raises: BadImage if the annotations of an image are not for its size, or for which pixels is not known."""
        stored = stored_size(turn, *size)
        fitting = {None: (size,), "upright": (size, stored), "stored": (stored,)}[self.orientation]
        if turn != 1 and self.orientation is None and (given != size or turn < QUARTER or size == stored):
            raise BadImage(path, ambiguous(turn))
        if 0 not in given and given not in fitting:
            height, width = fitting[0]
            raise BadImage(
                path, f"it has {width} x {height} pixels; its annotations are for {given[1]} x {given[0]}"
            )

    def _trained_on(self, empty: Empty) -> np.ndarray:
        """The rows of the images that train; the others are counted, with the causes of their objects."""
        table, sizes = self.table, self._sizes
        large = (sizes == 0).any(axis=1) | (sizes.min(axis=1, initial=LARGEST) >= SHORTEST)
        crowds, tiny = table.crowds, ~self._a_pixel_or_more()
        usable = ~tiny & ~crowds if self._bare is None else ~tiny & ~crowds & ~self._bare
        self._count_objects(crowds, CROWDS)
        self._count_objects(tiny & ~crowds, TINY)
        holding = np.bincount(table.images, weights=usable, minlength=len(table)) > 0
        wanted = holding | (empty == "keep")
        self._count(~large, f"images with a side under {SHORTEST} pixels, left out")
        self._count(large & ~wanted, "images without an object to train on, left out")
        return np.flatnonzero(large & wanted)

    def _count(self, rows: np.ndarray, cause: str) -> None:
        """Add the images that `rows` (N,) marks to the problems."""
        for row in np.flatnonzero(rows):
            self.problems.add(cause, self.table.name(int(row)))

    def _count_objects(self, objects: np.ndarray, cause: str) -> None:
        """Add the objects that `objects` (M,) marks to the problems, each with the name of its image."""
        images = self.table.images
        for k in np.flatnonzero(objects):
            self.problems.add(cause, self.table.name(int(images[k])))

    def _a_pixel_or_more(self) -> np.ndarray:
        """Which objects (M,) have a pixel or more inside their image, as far as its size is known."""
        boxes = self.table.boxes
        sizes = self._sizes[self.table.images][:, ::-1].astype(np.float64)
        known = (sizes > 0).all(axis=1)
        if self.table.shares:
            boxes = boxes * np.tile(np.where(known[:, None], sizes, 1), 2)
        if self.orientation == "stored":  # a turn may swap the sides
            sizes = np.maximum(sizes, sizes[:, ::-1])
        limits = np.where(known[:, None], np.tile(sizes, 2), np.inf)
        clipped = np.minimum(boxes.clip(0), limits)
        sides = clipped[:, 2:] - clipped[:, :2]
        return np.where(known, (sides >= 1).all(axis=1), True)


def place_root(place: Place) -> str | None:
    """The folder of a set whose root is not given: that of the first path that the recipe names."""
    return os.path.dirname(place.given[0]) if place.given else None


def check_options(**given: Any) -> None:
    """Raises: ValueError if an option of sets of objects has a value that it does not take."""
    known = {"empty": ("drop", "keep"), "masks": ("read", "skip"), "missing": ("error", "skip")}
    for name, value in given.items():
        if name == "orientation":
            check_orientation(value)
        elif value not in known[name]:
            raise ValueError(f"{name} takes one of {', '.join(known[name])}; got {value!r}.")


def find_images(
    names: Sequence[str],
    lookup: Lookup,
    problems: Problems,
    *,
    listed_in: str,
    missing: Missing = "error",
    needed: Callable[[int], bool] = lambda _: True,
) -> list[str | None]:
    """The files of the images that annotations name, relative to the folder of `lookup`; None: left out.

    Args:
        listed_in: what names them, for messages.
        missing: whether images that are not there are an error, or left out and counted.
        needed: whether the image at a position is used at all; one that is not may be missing.

    Raises:
        ValueError: if files are missing or cannot be read, or two names mean one file.
    """
    files = [lookup.find(name) for name in names]
    lost = [name for i, name in enumerate(names) if files[i] is None and needed(i)]
    if lost and (missing == "error" or len(lost) == len(names)):
        raise ValueError(
            f"{len(lost):,} of the {len(names):,} images that {listed_in} lists are not in"
            f" {str(lookup.folder)!r}; the first: {lost[0]!r}. data.options.images names their folder;"
            " data.options.missing=skip leaves them out."
        )
    for name in lost:
        problems.add(f"images that are not in {str(lookup.folder)!r}, left out", name)
    other = [file for file in files if file is not None and ending(file) in UNREADABLE]
    if other:
        raise ValueError(
            f"{len(other):,} of the {len(names):,} images that {listed_in} lists are {ending(other[0])} files, which"
            f" cannot be read; the first: {other[0]!r}. Convert them to .jpg or .png; their names may stay."
        )
    owners: dict[str, str] = {}
    for name, file in zip(names, files, strict=True):
        if file is not None and (owner := owners.setdefault(file, name)) != name:
            raise ValueError(
                f"{listed_in} lists {owner!r} and {name!r}, and both are the file {file!r} in"
                f" {str(lookup.folder)!r}."
            )
    return files


def unknown_classes(labels: Collection[str], cure: str) -> str:
    """The cause to count for objects whose classes the set does not list."""
    first = ", ".join(list(labels)[:5]) + (f" and {len(labels) - 5} more" if len(labels) > 5 else "")
    return f"objects of unknown classes ({first}), left out; {cure}"


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


def runs(segmentation: dict[str, Any], height: int, width: int, *, turned: bool = False) -> bytes:
    """The run lengths of an annotation, counts or letters, checked, as letters.

    turned: whether the image may be a turned one, whose sides are swapped.

    Raises:
        ValueError: if they are not for an image of this size, or do not read.
    """
    if segmentation.get("size") not in ([height, width], *([[width, height]] if turned else ())):
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
