"""Locations of the splits of a data set, and dividing a set without splits.

A split is "train", "val" or "test". Its location is set by the recipe (`data.train`, `data.val`, `data.test`: one or
more folders or files), or is the usual folder of the layout: train, val, test, or a common synonym. `data.split =
0.1` uses a tenth of the training images for validation.
"""

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tetravit.data.files import some
from tetravit.data.storage import is_local, storage_of

Part = Literal["train", "val", "test"]
PARTS: tuple[Part, ...] = ("train", "val", "test")
NAMES: dict[Part, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}


@dataclass(frozen=True)
class Place:
    """Location of the images of a split.

    part: the split, for its usual folder. given: absolute paths from the recipe; empty: none. whole: whether a root
    without split folders counts as this split, because the set is to be divided.
    """

    part: Part
    given: tuple[str, ...] = ()
    whole: bool = False


@dataclass(frozen=True)
class Parts:
    """Settings of section [data] for the splits of a set.

    train, val, test: paths, absolute or relative to the root. split: share of the training images used for
    validation; 0: none. by: group key when a set is divided, see `divided`. seed: of the division.
    """

    root: str | None = None
    train: tuple[str, ...] = ()
    val: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    split: float = 0.0
    by: str = ""
    seed: int = 0

    def place(self, part: Part) -> Place:
        """Location of a split; for the validation split of a divided set, that of all its images."""
        lies = "train" if part == "val" and self.divides(part) else part
        return Place(lies, tuple(map(self._absolute, getattr(self, lies))), self.divides(part))

    def divides(self, part: Part) -> bool:
        """Whether the split is a share of the training images."""
        return self.split > 0 and part != "test" and not self.val

    def _absolute(self, path: str) -> str:
        path = os.path.expanduser(path)
        if self.root is None or os.path.isabs(path) or not is_local(path):
            return path
        return storage_of(self.root).join(self.root, path)


def find_part(folder: str, part: Part) -> str | None:
    """The folder of a split inside `folder`, by any of its names; None: there is none.

    A name in `NAMES` takes precedence over the same name in another case ("Train").

    Raises:
        OSError: if the folder cannot be listed.
    """
    storage = storage_of(folder)
    folders = {entry.name: entry.name for entry in storage.list(folder) if entry.is_folder}
    lowered = {name.lower(): name for name in sorted(folders, reverse=True)} | folders
    for name in NAMES[part]:
        if name in lowered:
            return storage.join(folder, lowered[name])
    return None


def part_folder(folder: str, part: Part, layout: str) -> str:
    """The folder of a split inside `folder`.

    Raises:
        ValueError: if there is none; the message lists the existing folders and the option that sets it.
    """
    if not storage_of(folder).exists(folder):
        raise ValueError(f"There is no folder {folder!r}.")
    place = find_part(folder, part)
    if place is not None:
        return place
    there = sorted(e.name for e in storage_of(folder).list(folder) if e.is_folder and e.name[0] not in ".@")
    divide = ", or divide the images with data.split=0.1" if part != "test" else ""
    raise ValueError(
        f"There is no folder {part!r} in {folder!r}, which has {some(there) or 'no folder'}; the layout is {layout}."
        f" Name it with data.{part}=FOLDER{divide}."
    )


def dividing(part: Part) -> str:
    """What is said beside a part that is not there."""
    return "" if part == "test" else " data.split=0.1 divides a set without parts."


def divided(
    names: Sequence[str], strata: np.ndarray | None, *, share: float, by: str = "", seed: int = 0
) -> np.ndarray:
    """Select validation images (N,) of a set: about `share` of each stratum, in whole groups.

    The choice depends on the names, the seed and the strata, not on the order or location of the images.

    Args:
        names: of the images, relative to the set.
        strata: (N,) int, usually the class of each image; each stratum is divided separately; None: one stratum.
        share: above 0 and below 1. A stratum with two groups or more has at least one in each split.
        by: group key, so that near duplicates stay in one split: "" each image by itself; "folder" the images of a
            folder; else a regular expression whose first group in the name is the key.
        seed: of the selection.

    Raises:
        ValueError: if `by` is not a regular expression or matches no name, or no image can be selected.
    """
    keys = _keys(names, by)
    kinds = np.zeros(len(names), dtype=np.int64) if strata is None else strata
    members: dict[str, list[int]] = {}
    for i, key in enumerate(keys):
        members.setdefault(key, []).append(i)
    by_kind: dict[int, list[str]] = {}
    for key, rows in members.items():
        by_kind.setdefault(int(np.bincount(kinds[rows]).argmax()), []).append(key)
    held = np.zeros(len(names), dtype=bool)
    for groups in by_kind.values():
        groups.sort(
            key=lambda key: hashlib.blake2b(f"{seed}/{key}".encode(errors="surrogateescape")).digest()
        )
        total = sum(len(members[key]) for key in groups)
        taken = 0
        for key in groups[:-1]:  # at least one group stays in training
            size = len(members[key])
            if not taken or taken + size / 2 <= share * total:
                held[members[key]] = True
                taken += size
    if not held.any():
        raise ValueError(
            f"data.split={share:g} holds out no image: there are {len(members)} groups of images in"
            f" {len(by_kind)} classes."
        )
    return held


def _keys(names: Sequence[str], by: str) -> list[str]:
    if not by:
        return list(names)
    if by == "folder":
        return [name.rpartition("/")[0] for name in names]
    try:
        pattern = re.compile(by)
    except re.error as error:
        raise ValueError(f"data.split_by is 'folder' or a regular expression; got {by!r}: {error}.") from None
    matches = [pattern.search(name) for name in names]
    group = min(pattern.groups, 1)
    if not any(matches):
        raise ValueError(
            f"data.split_by={by!r} matches none of the {len(names)} names; the first is {names[0]!r}."
        )
    pairs = zip(names, matches, strict=True)
    return [name if match is None else match.group(group) or name for name, match in pairs]


def class_notes(counts: np.ndarray | None, names: Sequence[str], part: str) -> list[str]:
    """Messages about classes missing from a split. counts: (classes,) occurrences per class; None: unknown."""
    absent = [] if counts is None else [names[int(i)] for i in np.flatnonzero(counts == 0)]
    if not absent:
        return []
    classes = "1 class has" if len(absent) == 1 else f"{len(absent)} classes have"
    return [f"{classes} nothing in {part}: {some(absent)}"]
