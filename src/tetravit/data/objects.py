"""Detection sets backed by an object table: which images are used for training, and their targets.

Unusable annotations are left out and counted.

Shapes: N images, M objects of an image.
"""

import logging
import os
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
from tetravit.data.object_table import LARGEST, ObjectTable
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
SHORTEST = 32  # pixels: minimum side of training images, as in the papers' releases

SAMPLE = 1000  # image headers read at construction, to detect rotated images

WITHOUT_MASK = "objects without a mask, left out; data.options.masks=skip keeps them"
CROWDS = "crowds or difficult objects, evaluated but not trained on"
TINY = "objects of less than a pixel inside their image, not trained on"

Empty = Literal["drop", "keep"]
Masks = Literal["read", "skip"]
Missing = Literal["error", "skip"]


class ObjectSet(Dataset):
    """Images with objects, described by a table. Base of the detection layouts.

    Args:
        folder: base path of the names in the table.
        table: after `close`.
        class_names: one per label.
        split: "train" selects images as the papers' releases do: sides of 32 pixels or more, at least one non-crowd
            object (unless `empty` is "keep"), objects of a pixel or more.
        masks: "read", or "skip" to save time. With "read", an object without a mask is left out, unless no object of
            the set has one: then targets have no masks.
        orientation: whether annotations of images with an EXIF rotation fit the "upright" or the "stored" pixels;
            None: such images are an error, unless their annotated size decides.

    `problems` counts what was left out.

    Raises:
        ValueError: if nothing is left, with every cause; or if images are rotated and neither an option nor a size
            decides the orientation of their annotations.
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
        self._check_sizes(turns)
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
        lines = self.problems.lines() if split != "train" else []  # a training run shows them in its plan
        if split != "train" and not self.counts.any():
            lines.append(f"none of the {len(table):,} images has an object: only false positives are scored")
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
            masks=self.has_masks,
            strata=self._strata(),
        )

    def key(self, index: int) -> str:
        return self.table.name(int(self.rows[index]))

    def _strata(self) -> np.ndarray:
        """(N,) the rarest class of each image; `num_classes` if it has no object."""
        table = self.table
        by_count = np.argsort(np.argsort(self.counts, kind="stable"), kind="stable")  # 0: the rarest
        ranks = np.full(len(table), self.num_classes, dtype=np.int64)
        np.minimum.at(ranks, table.images, by_count[table.labels])
        classes = np.append(np.argsort(by_count, kind="stable"), self.num_classes)
        return np.asarray(classes[ranks][self.rows])

    @property
    def wide(self) -> np.ndarray | None:
        """Whether each image is wider than high; None: unknown before the images are read."""
        sizes = self._sizes[self.rows]
        return None if (sizes == 0).any() else sizes[:, 1] > sizes[:, 0]

    def __getitem__(self, index: int) -> Sample:
        row = int(self.rows[index])
        path, data = self._image(row)
        image = decode(data, name=path, layout="decoded")
        size = (image.shape[1], image.shape[2])
        turn = orientation(data, path)
        if len(self.table.objects(row)):
            self._check_size(path, size, turn, tuple(self.table.sizes[row].tolist()))
        return Sample(image, self.target(index, size, turn), path)

    def path(self, index: int) -> str:
        return os.path.join(self.folder, self.table.name(int(self.rows[index])))

    def stored_size(self, row: int) -> tuple[int, int]:
        """Height and width of the stored pixels of an image, from its header."""
        height, width, turn = self._heads(np.array([row]))[0].tolist()
        return stored_size(turn, height, width)

    def _image(self, row: int) -> tuple[str, bytes]:
        """The name of an image in messages, and the bytes of its file."""
        path = os.path.join(self.folder, self.table.name(row))
        return path, file_bytes(path)

    def _heads(self, rows: np.ndarray) -> np.ndarray:
        """(n, 3) height, width and orientation of images, as `headers`."""
        return headers(self.folder, [self.table.name(int(row)) for row in rows])

    def target(self, index: int, size: tuple[int, int], turn: int = 1) -> Target:
        """The objects of an upright image of `size` (height, width) with the EXIF orientation `turn`."""
        table, row = self.table, int(self.rows[index])
        turn = turn if self.orientation == "stored" else 1
        stored = stored_size(turn, *size)  # size of the annotated pixels
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
        """(N, 2) sizes of the upright images, 0 if unknown; (N,) their orientations, 0 if not read.

        Headers are read if annotations have no sizes and training needs them (to order images and exclude small
        ones), for images that may be rotated, and otherwise for a sample.
        """
        table = self.table
        sizes, turns = table.sizes.copy(), np.zeros(len(table), dtype=np.int32)
        unknown = (sizes == 0).any(axis=1) & (self.split == "train")
        step = max(1, -(-len(table) // SAMPLE))
        sample = np.arange(len(table)) % step == 0
        rows = np.flatnonzero(unknown | sample if self.orientation is None else np.ones(len(table), bool))
        read = self._heads(rows)
        turns[rows] = read[:, 2]
        fill = unknown[rows] | ((read[:, 2] >= QUARTER) & (self.orientation is not None))
        sizes[rows[fill]] = read[fill, :2]
        self._read_sizes = np.zeros_like(sizes)
        self._read_sizes[rows] = read[:, :2]
        return sizes, turns

    def _check_turned(self, turns: np.ndarray) -> None:
        """Raises: ValueError if images are rotated, and nothing decides the orientation of their annotations."""
        if self.orientation is not None:
            return
        turned = turns > 1
        given, upright = self.table.sizes, self._read_sizes
        decided = (turns >= QUARTER) & (given == upright).all(axis=1) & (upright[:, 0] != upright[:, 1])
        held = np.zeros(len(turns), bool)
        held[self.table.images] = True
        unclear = np.flatnonzero(turned & ~decided & held)  # orientation is irrelevant without objects
        if len(unclear):
            row = int(unclear[0])
            raise turned_error(self.table.name(row), int(turns[row]), len(unclear), int((turns > 0).sum()))

    def _check_sizes(self, turns: np.ndarray) -> None:
        """Compare the sizes that annotations are for with those of the images that were read; turned ones aside.

        Raises:
            BadImage: if none agrees.
        """
        table, read = self.table, self._read_sizes
        known = (table.sizes > 0).all(axis=1) & (read > 0).all(axis=1) & (turns <= 1)
        known &= np.bincount(table.images, minlength=len(table)) > 0
        unlike = np.flatnonzero(known & (table.sizes != read).any(axis=1))
        if len(unlike) and len(unlike) == known.sum():
            row = int(unlike[0])
            more = f"; the same holds for all {len(unlike)} that were read first" if len(unlike) > 1 else ""
            path = os.path.join(self.folder, table.name(row))
            raise BadImage(path, _other_size(read[row].tolist(), table.sizes[row].tolist()) + more)
        for row in unlike.tolist():
            self.problems.add(
                "images of another size than their annotations are for, of those read first",
                table.name(int(row)),
            )

    def _check_size(self, path: str, size: tuple[int, int], turn: int, given: tuple[int, ...]) -> None:
        """Raises: BadImage if annotations have another size than the image, or their orientation is ambiguous."""
        stored = stored_size(turn, *size)
        fitting = {None: (size,), "upright": (size, stored), "stored": (stored,)}[self.orientation]
        if turn != 1 and self.orientation is None and (given != size or turn < QUARTER or size == stored):
            raise BadImage(path, ambiguous(turn))
        if 0 not in given and given not in fitting:
            raise BadImage(path, _other_size(fitting[0], given))

    def _trained_on(self, empty: Empty) -> np.ndarray:
        """The rows of the training images; the others are counted, by cause."""
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
        """Add the images selected by `rows` (N,) to the problems."""
        for row in np.flatnonzero(rows):
            self.problems.add(cause, self.table.name(int(row)))

    def _count_objects(self, objects: np.ndarray, cause: str) -> None:
        """Add the objects selected by `objects` (M,) to the problems, each with its image name."""
        images = self.table.images
        for k in np.flatnonzero(objects):
            self.problems.add(cause, self.table.name(int(images[k])))

    def _a_pixel_or_more(self) -> np.ndarray:
        """Whether each object (M,) covers a pixel or more of its image, if its size is known."""
        boxes = self.table.boxes
        sizes = self._sizes[self.table.images][:, ::-1].astype(np.float64)
        known = (sizes > 0).all(axis=1)
        if self.table.shares:
            boxes = boxes * np.tile(np.where(known[:, None], sizes, 1), 2)
        if self.orientation == "stored":  # a rotation may swap the sides
            sizes = np.maximum(sizes, sizes[:, ::-1])
        limits = np.where(known[:, None], np.tile(sizes, 2), np.inf)
        clipped = np.minimum(boxes.clip(0), limits)
        sides = clipped[:, 2:] - clipped[:, :2]
        return np.where(known, (sides >= 1).all(axis=1), True)


def _other_size(size: Sequence[int], given: Sequence[int]) -> str:
    """Why annotations are refused that are for another height and width than their image has."""
    return f"it has {size[1]} x {size[0]} pixels; its annotations are for {given[1]} x {given[0]}"


def place_root(place: Place) -> str | None:
    """The folder of a set without a root: that of the first path in the recipe."""
    return os.path.dirname(place.given[0]) if place.given else None


def check_options(**given: Any) -> None:
    """Raises: ValueError if an option of a detection set has an invalid value."""
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
    """The files of annotated images, relative to the folder of `lookup`; None: left out.

    Args:
        listed_in: name of the annotation source, for messages.
        missing: whether missing images are an error, or left out and counted.
        needed: whether the image at a position is used; unused ones may be missing.

    Raises:
        ValueError: if files are missing or cannot be read, or two names resolve to one file.
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
    """The cause, for `Problems`, of objects whose class is not in the set."""
    first = ", ".join(list(labels)[:5]) + (f" and {len(labels) - 5} more" if len(labels) > 5 else "")
    return f"objects of unknown classes ({first}), left out; {cure}"
