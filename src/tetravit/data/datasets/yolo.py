"""YOLO: objects in text files, one per image.

ROOT contains `images/{train,val}/NAME.jpg`, `labels/{train,val}/NAME.txt` (or Roboflow's `{train,valid}/images`,
`.../labels`) and the class names: one per line in `classes.txt`, or `names:` in `data.yaml`, whose `path`, `train`,
`val` and `test` give the splits. A line is `CLASS X Y WIDTH HEIGHT`, centre and sides of a box normalized to 0..1, or
`CLASS X1 Y1 X2 Y2 X3 Y3 ...`, a normalized polygon; with `kpt_shape: [K, D]` in data.yaml, a box is followed by K
keypoints, which are ignored. An image without a label file has no objects.
"""

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tetravit.data.datasets.base import Root, Split, check_split, local_root
from tetravit.data.files import UNREADABLE, ending, some
from tetravit.data.lookup import Lookup
from tetravit.data.object_table import ObjectTable, check_box, check_polygon
from tetravit.data.objects import (
    Empty,
    Masks,
    ObjectSet,
    check_options,
    place_root,
    unknown_classes,
)
from tetravit.data.parts import PARTS, Parts
from tetravit.data.text import read_text
from tetravit.data.upright import Orientation
from tetravit.data.yolo_layout import NAMES, describe, image_files

PIXELS = 2.0  # normalized values are below; larger values are pixels
COMPARED = 10_000  # lines tested for keypoints
VISIBLE = (0.0, 1.0, 2.0)  # visibility of a keypoint: not labelled, occluded, visible


class Yolo(ObjectSet):
    """Images with objects from YOLO text files.

    Args:
        root: the folder that contains images, labels and class names; or its data.yaml.
        split: "train", "val" or "test".
        empty: "drop" or "keep" training images without objects.
        masks: "read" polygons as masks, or "skip" them.
        kpt_shape: (keypoints, values per keypoint) of the lines; None: that of data.yaml; (0, 0): no keypoints, and
            longer lines are polygons.
        orientation: whether labels of images with an EXIF rotation fit the "upright" or the "stored" pixels.
        parts: locations of the splits: folders of images, or .txt lists of images.

    Raises:
        ValueError: in one line, if a folder is missing, class names are missing or have gaps, or lines may be
            keypoints or polygons. `problems` counts what is left out, and images and label files without a
            counterpart.
    """

    def __init__(
        self,
        root: Root,
        split: Split,
        *,
        empty: Empty = "drop",
        masks: Masks = "read",
        kpt_shape: Sequence[int] | None = None,
        orientation: Orientation | None = None,
        parts: Parts | None = None,
    ) -> None:
        check_split(split, PARTS)
        check_options(empty=empty, masks=masks, orientation=orientation)
        parts = parts or Parts(None if root is None else os.fspath(root))
        place = parts.place(split)
        folder = local_root("yolo", root or place_root(place))
        described = describe(folder)
        folder = described.folder
        keypoints = described.kpt_shape if kpt_shape is None else _shape(kpt_shape, "data.options.kpt_shape")
        files = image_files(described, place)
        images, others = ([f for f in files if (ending(f.name) in UNREADABLE) == no] for no in (False, True))
        table = ObjectTable(shares=True)
        for file in others:
            table.problems.add(
                f"images left out: {ending(file.name)} cannot be read; convert them", str(file)
            )
        rows = _Rows(table, described.class_names, keypoints, masks)
        labels = Labels()
        for number, image in enumerate(images):
            name = image.relative_to(folder).as_posix() if image.is_relative_to(folder) else str(image)
            row = table.image(name, number)
            label_file = labels.of(image)
            if label_file is None:
                table.problems.add("images without a label file, taken for empty", name)
            else:
                rows.read(row, label_file)
        for left in labels.alone():
            table.problems.add("label files without an image, left out", left)
        rows.close()
        super().__init__(
            folder,
            table.close(),
            described.class_names,
            split,
            empty=empty,
            masks=masks,
            orientation=orientation,
        )


class Labels:
    """The label files of images: the last `images` in a path is replaced by `labels`, else beside the image."""

    def __init__(self) -> None:
        self._lookups: dict[Path, Lookup] = {}
        self._used: set[str] = set()

    def of(self, image: Path) -> Path | None:
        """The label file of an image; None: there is none."""
        folder = label_folder(image.parent)
        if folder not in self._lookups:
            if not folder.is_dir():
                folder = image.parent
            self._lookups[folder] = self._lookups.get(folder) or Lookup(folder, {".txt"})
        lookup = self._lookups[folder]
        name: str | None = f"{image.stem}.txt"
        if name not in lookup.exact:
            try:
                name = lookup.find(f"{image.stem}.txt")
            except ValueError:  # in several other folders: ambiguous
                name = None
            if name is None or "/" in name:
                return None
        self._used.add(str(folder / name))
        return folder / name

    def alone(self) -> list[str]:
        """Label files without an image, relative to their folder."""
        return [
            name
            for folder, lookup in sorted(self._lookups.items())
            for name in lookup.names
            if "/" not in name
            and name.lower().endswith(".txt")
            and name not in (NAMES, "train.txt", "val.txt")
            if str(folder / name) not in self._used and not name.lower().startswith("readme")
        ]


def label_folder(images: Path) -> Path:
    """The label folder of an image folder."""
    parts = list(images.parts)
    for i in range(len(parts) - 1, -1, -1):
        if parts[i].lower() == "images":
            return Path(*parts[:i], "labels", *parts[i + 1 :])
    return images


class _Rows:
    """Parses label files into a table."""

    def __init__(
        self, table: ObjectTable, names: Sequence[str], keypoints: tuple[int, int] | None, masks: Masks
    ) -> None:
        self.table, self.names, self.keypoints, self.masks = table, names, keypoints, masks
        self.strange: dict[str, None] = {}
        self.pending: list[str] = []
        self.longer: list[list[float]] = []  # lines longer than a box, while all may be keypoints
        self.first_longer = ""
        self.boxes = self.longer_lines = 0
        self.alike = True  # whether all longer lines have one length

    def read(self, row: int, file: Path) -> None:
        """Add the objects of one file."""
        problems = self.table.problems
        for i, line in enumerate(read_text(file, errors="replace").splitlines(), start=1):
            if not line.strip():
                continue
            where = f"{file.name}, line {i}"
            numbers = numbers_of(line)
            if numbers is None:
                problems.add("lines that are not numbers, left out", f"{where}: {line.strip()[:60]!r}")
                continue
            first, values = numbers[0], numbers[1:]
            kind = self._kind(values, where)
            if kind == "":
                continue
            if not math.isfinite(first) or first != int(first) or not 0 <= first < len(self.names):
                self.strange[f"{first:g}"] = None
                self.pending.append(where)
                continue
            self._add(row, int(first), values, kind == "polygon", where)

    def _kind(self, values: list[float], where: str) -> str:
        """ "box" or "polygon"; "": neither, and counted."""
        if len(values) == 4:
            self.boxes += 1
            return "box"
        if self.keypoints is not None and self.keypoints[0]:
            count, each = self.keypoints
            if len(values) == 4 + count * each:
                return "box"
            self.table.problems.add(
                f"lines that do not have the {5 + count * each} numbers of kpt_shape [{count}, {each}], left out",
                where,
            )
            return ""
        if self.keypoints is None and len(values) > 4:
            self.first_longer = self.first_longer or where
            self.longer_lines += 1
            self.alike = self.alike and (not self.longer or len(values) == len(self.longer[0]))
            if self.alike and len(self.longer) < COMPARED:
                self.longer.append(values)
        if len(values) < 6 or len(values) % 2:
            self.table.problems.add("lines that are neither a box nor a polygon, left out", where)
            return ""
        return "polygon"

    def _add(self, row: int, label: int, values: list[float], is_polygon: bool, where: str) -> None:
        if is_polygon:
            box = (min(values[0::2]), min(values[1::2]), max(values[0::2]), max(values[1::2]))
        else:
            x, y, width, height = values[:4]
            box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        wrong = check_box(box)
        if wrong is None and min(values if is_polygon else values[:4]) >= PIXELS:
            wrong = "lines in pixels, left out: YOLO's numbers are shares of the image, from 0 to 1"
        if wrong is None and (box[0] >= 1 or box[1] >= 1 or box[2] <= 0 or box[3] <= 0):
            wrong = "boxes outside their image, left out"
        if wrong is not None:
            self.table.problems.add(wrong, where)
            return
        polygons = []
        if is_polygon and self.masks == "read":
            wrong = check_polygon(values, 1.0)
            if wrong is not None:
                self.table.problems.add(wrong, where)
            else:
                polygons = [values]
        self.table.add(row, box, label, polygons=polygons)

    def close(self) -> None:
        """Count faults that show only over all lines.

        Raises:
            ValueError: if the lines may be boxes with keypoints or polygons.
        """
        cause = unknown_classes(self.strange, f"names has 0 to {len(self.names) - 1}: {some(self.names)}")
        for where in self.pending:
            self.table.problems.add(cause, where)
        shape = keypoint_shape(self.longer) if self.alike and not self.boxes else None
        if shape is not None:
            count, each = shape
            raise ValueError(
                f"{self.longer_lines:,} lines look like boxes with {count} keypoints each; the first:"
                f" {self.first_longer}. kpt_shape: [{count}, {each}] in data.yaml, or"
                f" data.options.kpt_shape=[{count},{each}], says so; data.options.kpt_shape=[0,0] that they are"
                " polygons."
            )


def numbers_of(line: str) -> list[float] | None:
    """The numbers of a line, separated by spaces, commas or semicolons; a comma may be decimal. None: not numeric."""
    words = line.replace(";", " ").split()
    if len(words) > 4 and all(
        re.fullmatch(r"[-+]?\d+,\d+", word) or word in ("0", "1") for word in words[1:]
    ):
        words = [word.replace(",", ".") for word in words]
    elif "," in line:
        words = line.replace(",", " ").replace(";", " ").split()
    try:
        return [float(word) for word in words]
    except ValueError:
        return None


def keypoint_shape(rows: Sequence[Sequence[float]]) -> tuple[int, int] | None:
    """(keypoints, values per keypoint) that lines may have; None: they are polygons.

    Keypoint lines have one length; the box lies in the image and contains the points, or every point has a visibility
    of 0, 1 or 2.
    """
    if not rows or len({len(row) for row in rows}) != 1:
        return None
    values = np.array(rows)
    rest = values[:, 4:]
    corner, side = values[:, :2], values[:, 2:4]
    low, high = corner - side / 2, corner + side / 2
    if (side <= 0).any() or (low < -0.01).any() or (high > 1.01).any():
        return None
    if rest.shape[1] % 3 == 0 and np.isin(rest[:, 2::3], VISIBLE).all():
        return rest.shape[1] // 3, 3
    if rest.shape[1] % 2:
        return None
    points = rest.reshape(len(rows), -1, 2)
    inside = ((points >= low[:, None] - 0.01) & (points <= high[:, None] + 0.01)).all(axis=2)
    return (rest.shape[1] // 2, 2) if (inside | (points == 0).all(axis=2)).all() else None


def _shape(value: Sequence[int], where: str) -> tuple[int, int]:
    try:
        count, each = (int(number) for number in value)
    except (TypeError, ValueError):
        raise ValueError(f"{where} is [keypoints, numbers each], such as [17, 3]; got {value!r}.") from None
    return count, each


DATASETS = {"yolo": Yolo}
