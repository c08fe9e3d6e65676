"""Images and classes in a table: one row per image, in one CSV, TSV or text file per split.

ROOT/train.csv, ROOT/val.csv, or the files in data.train and data.val; images lie anywhere below ROOT. A text file has
lines `IMAGE CLASS`. An image may have several classes: in several rows, in one cell, or in columns of 0 and 1.
"""

import csv
import io
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from tetravit.data.datasets.base import Dataset, DatasetInfo, Root, Split, check_split, local_root
from tetravit.data.decode import decode
from tetravit.data.files import is_image, same_name, some
from tetravit.data.lookup import Lookup
from tetravit.data.parts import NAMES, PARTS, Part, Parts
from tetravit.data.problems import Problems
from tetravit.data.text import read_lines, read_text
from tetravit.structures import Sample

ENDINGS = (".csv", ".tsv", ".txt")
# fmt: off
IMAGE_COLUMNS = ("image", "file", "filename", "file_name", "path", "image_path", "filepath", "image_id", "img", "id")
LABEL_COLUMNS = ("label", "class", "category", "target", "labels", "classes", "tags", "class_name", "y")
YES, NO = frozenset(("1", "1.0", "true", "yes", "t", "y")), frozenset(("0", "0.0", "false", "no", "f", "n", "", "-1"))
# fmt: on

SEPARATORS = ("|", ";", ",")  # between classes of one cell
Row = tuple[str, tuple[str, ...]]  # image as written, its classes


class ImageList(Dataset):
    """Images and their classes in a table: ROOT/train.csv.

    Args:
        root: base path of the file names.
        split: "train", "val" or "test".
        parts: locations of the tables; None: `train.csv`, `val.csv`, `test.csv` in the root, or .tsv, or .txt.
        channels: of the images.
        image: the column of file names; "": detected by usual names.
        label: the column of classes, or several columns of 0 and 1, one per class; "": detected by usual names.
        several: multi-label: targets are (K,) float, 1 for each class of the image.
        separator: between the classes in one cell, for multi-label sets.
        images: the folder of the images, relative to the root.
        classes: a file of class names, one per line, in class order; "": the classes in the tables, sorted.

    Raises:
        ValueError: if a table is missing or cannot be read, or none of its images exists.
    """

    needs_root = True

    def __init__(
        self,
        root: Root,
        split: Split,
        *,
        parts: Parts | None = None,
        channels: int = 3,
        image: str = "",
        label: str | Sequence[str] = "",
        several: bool = False,
        separator: str = "|",
        images: str = "",
        classes: str = "",
    ) -> None:
        check_split(split, PARTS)
        parts = parts or Parts(None if root is None else os.fspath(root))
        self.channels, self.problems = channels, Problems()
        self.several = several or not isinstance(label, str)
        separator = separator if self.several else ""
        files = _tables(parts, split)
        rows = [row for file in files for row in _rows(file, image, label, separator, self.problems)]
        if classes:
            self.class_names: tuple[str, ...] = tuple(read_lines(local_root("image_list", root) / classes))
        else:
            self.class_names = _class_names(parts, split, image, label, separator)
            _check_cells(self.class_names, separator)
        self.num_classes = len(self.class_names)
        if self.num_classes < (1 if self.several else 2):
            raise ValueError(
                f"Classification needs two classes or more; {files[0].name!r} has {some(self.class_names) or 'none'}."
            )
        folder = (Path(root) if root is not None else files[0].parent) / images
        self.folder, self.files, self._classes = folder, *self._found(rows, folder, files[0])
        counts = np.zeros(self.num_classes, dtype=np.int64)
        for numbers in self._classes:
            counts[list(numbers)] += 1
        self._counts = counts
        # stratum of an image: its rarest class
        strata = [min(n, key=lambda k: counts[k]) if n else self.num_classes for n in self._classes]
        self._strata = np.array(strata, dtype=np.int64)
        if not self.several:
            self.labels = self._strata

    def _found(self, rows: list[Row], folder: Path, table: Path) -> tuple[list[str], list[tuple[int, ...]]]:
        """Files relative to the folder, and their class indices."""
        numbers = {name: i for i, name in enumerate(self.class_names)}
        lookup, classes = Lookup(folder), dict[str, set[str]]()
        for name, labels in rows:
            file = lookup.find(name)
            if file is None:
                self.problems.add("rows left out: the file is not there", name)
            elif not is_image(os.path.basename(file), self.channels):
                self.problems.add("rows left out: the file is no image that can be read", file)
            elif unknown := [label for label in labels if label not in numbers]:
                self.problems.add(
                    "rows left out: their class is not among the given ones", f"{name}, {unknown[0]}"
                )
            elif not labels and not self.several:
                self.problems.add("rows left out: they have no class", name)
            else:
                known = classes.setdefault(file, set())
                if known and not self.several and known != set(labels):
                    raise ValueError(
                        f"{table.name!r} has {file!r} with the classes {some(sorted(known | set(labels)))};"
                        " data.options.several=true lets an image have several."
                    )
                known.update(labels)
        if not classes:
            lines = "; ".join(self.problems.lines()) or "it has no row"
            raise ValueError(f"No image of {str(table)!r} can be used below {str(folder)!r}: {lines}.")
        return list(classes), [tuple(sorted(numbers[x] for x in names)) for names in classes.values()]

    @property
    def info(self) -> DatasetInfo:
        return replace(
            super().info,
            problems=tuple(self.problems.lines()),
            counts=self._counts,
            strata=self._strata,
            multi_label=self.several,
        )

    def key(self, index: int) -> str:
        return self.files[index]

    def __len__(self) -> int:
        return len(self.files)

    def path(self, index: int) -> str:
        return os.path.join(self.folder, self.files[index])

    def __getitem__(self, index: int) -> Sample:
        path, numbers = self.path(index), self._classes[index]
        image = decode(path, layout="decoded", channels=self.channels)
        if not self.several:
            return Sample(image, numbers[0], path)
        target = torch.zeros(self.num_classes)
        target[list(numbers)] = 1.0
        return Sample(image, target, path)


def _tables(parts: Parts, part: Part) -> list[Path]:
    """The tables of a split.

    Raises:
        ValueError: if there are none.
    """
    place = parts.place(part)
    if place.given:
        files = [Path(path) for path in place.given]
        if missing := [file for file in files if not file.is_file()]:
            raise ValueError(f"There is no table {str(missing[0])!r} of images and classes.")
        return files
    root = local_root("image_list", parts.root)
    if not root.is_dir():
        raise ValueError(f"There is no folder {str(root)!r}.")
    for name in NAMES[place.part]:
        for ending in ENDINGS:
            if (root / f"{name}{ending}").is_file():
                return [root / f"{name}{ending}"]
    there = sorted(p.name for p in root.iterdir() if p.suffix.lower() in ENDINGS)
    raise ValueError(
        f"There is no {place.part}.csv in {str(root)!r}, which has {some(there) or 'no table'}. Name it with"
        f" data.{place.part}=FILE, or divide one with data.train=FILE and data.split=0.1."
    )


def _class_names(
    parts: Parts, part: Part, image: str, label: str | Sequence[str], separator: str
) -> tuple[str, ...]:
    """Class names of the split, and of train and val if their tables exist; numeric names in numeric order."""
    if not isinstance(label, str):
        return tuple(label)
    names: set[str] = set()
    for other in dict.fromkeys((part, "train", "val")):
        try:
            files = _tables(parts, other)
        except ValueError:  # the other split does not exist
            continue
        for file in files:
            names.update(x for _, labels in _rows(file, image, label, separator, Problems()) for x in labels)
    whole = all(name.removeprefix("-").isdecimal() for name in names)
    return tuple(sorted(names, key=(lambda name: (int(name), name)) if whole else None))


def _check_cells(names: Sequence[str], separator: str) -> None:
    """Raises: ValueError if classes are several in one cell by another separator, "red;blue" say."""
    known = set(names)
    for mark in SEPARATORS:
        joint = [name for name in names if mark in name and any(p.strip() in known for p in name.split(mark))]
        if joint and mark != separator:
            option = "" if mark == "|" else f" data.options.separator='{mark}'"
            raise ValueError(
                f"{len(joint)} classes are several in one cell, {some(joint)}; data.options.several=true{option}"
                " takes them apart."
            )


def _rows(
    file: Path, image: str, label: str | Sequence[str], separator: str, problems: Problems
) -> list[Row]:
    """The images and classes of a table, as text.

    Raises:
        ValueError: if the file cannot be read, or a column is missing.
    """
    if file.suffix.lower() == ".txt":
        return [_line(line, separator) for line in read_lines(file)]
    text = read_text(file)
    head = text.partition("\n")[0]
    comma = max(("\t", ";", ",", "|"), key=head.count) if file.suffix.lower() != ".tsv" else "\t"
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=comma, skipinitialspace=True)
    columns = [name.strip() for name in reader.fieldnames or ()]
    reader.fieldnames = columns
    if (
        not image
        and not label
        and len(columns) == 2
        and is_image(columns[0].replace("\\", "/").rpartition("/")[2])
    ):
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=comma, skipinitialspace=True)  # no titles
        return [(row[0].strip(), _several(row[1], separator)) for row in rows if len(row) > 1 and row[0]]
    where = _column(file, columns, image, IMAGE_COLUMNS, "image")
    if not isinstance(label, str):
        lacking = [name for name in label if name not in columns]
        if lacking:
            raise ValueError(f"{file.name!r} lacks the columns {some(lacking)}; it has {some(columns, 12)}.")
        return [
            (
                row[where].strip(),
                tuple(name for name in label if _marked(row[name], name, row[where], problems)),
            )
            for row in reader
            if row[where]
        ]
    if not label:
        _check_marks(file, columns, where, text, comma)
    what = _column(file, columns, label, LABEL_COLUMNS, "label")
    return [(row[where].strip(), _several(row[what] or "", separator)) for row in reader if row[where]]


def _check_marks(file: Path, columns: Sequence[str], image: str, text: str, comma: str) -> None:
    """Raises: ValueError if a table has a column of 0 and 1 for each class, and none of class names."""
    others = [name for name in columns if name != image]
    if len(others) < 2 or any(name.lower().replace(" ", "_") in LABEL_COLUMNS for name in others):
        return
    rows = list(
        csv.DictReader(io.StringIO(text, newline=""), columns, delimiter=comma, skipinitialspace=True)
    )[1:]
    if rows and all((row[name] or "").strip().lower() in YES | NO for row in rows for name in others):
        raise ValueError(
            f"{file.name!r} has no column of class names but columns of 0 and 1:"
            f" data.options.label={json.dumps(others)} takes each as a class, of which an image may have several."
        )


def _column(file: Path, columns: Sequence[str], name: str, usual: Sequence[str], option: str) -> str:
    if name:
        if name not in columns:
            raise ValueError(f"{file.name!r} lacks the column {name!r}; it has {some(columns, 12)}.")
        return name
    lowered = {column.lower().replace(" ", "_"): column for column in reversed(columns)}
    match = next((lowered[known] for known in usual if known in lowered), None)
    if match is None:
        raise ValueError(
            f"{file.name!r} has the columns {some(columns, 12)}; data.options.{option} names that of the"
            f" {'files' if option == 'image' else 'classes'}."
        )
    return match


def _marked(value: str | None, column: str, image: str, problems: Problems) -> bool:
    text = (value or "").strip().lower()
    if text not in YES and text not in NO:
        problems.add("cells that are neither 0 nor 1, taken for 0", f"{column} of {image}")
    return text in YES


def _several(cell: str, separator: str) -> tuple[str, ...]:
    names = cell.split(separator) if separator else [cell]
    return tuple(dict.fromkeys(same_name(name.strip()) for name in names if name.strip()))


def _line(line: str, separator: str) -> Row:
    """Split `IMAGE CLASS`; without a class, it is the name of the image's folder."""
    name, _, label = line.rpartition("\t") if "\t" in line else line.rpartition(" ")
    if not name or os.path.splitext(label)[1]:  # no class follows; the name may contain spaces
        return line, _several(line.replace("\\", "/").rpartition("/")[0].rpartition("/")[2], "")
    return name.strip(), _several(label, separator)


DATASETS = {"image_list": ImageList}
