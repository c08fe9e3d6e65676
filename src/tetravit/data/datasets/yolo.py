"""YOLO: objects as lines of text, one file per image.

ROOT holds `images/{train,val}/NAME.jpg`, `labels/{train,val}/NAME.txt` and the class names, one per line, in
`classes.txt`, or as `names:` in `data.yaml`. A line is `CLASS X Y WIDTH HEIGHT`, the centre and the sides of a box as
shares of the image, or `CLASS X1 Y1 X2 Y2 X3 Y3 ...`, a polygon in shares. An image without a file has no object.
"""

import ast
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from tetravit.data.datasets.base import Root, Split, check_split, local_root
from tetravit.data.objects import Empty, ObjectSet, ObjectTable, check_box, check_polygon

NAMES = "classes.txt"
ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


class Yolo(ObjectSet):
    """Images with objects from YOLO's text files.

    Args:
        root: the folder that holds images, labels and class names.
        split: "train" or "val".
        empty: what happens to training images without an object: "drop" or "keep".
        masks: "read" polygons as masks, or "skip" them.

    Raises:
        ValueError: in one line, if a folder is missing, or the class names are or have gaps. `problems` counts
            what is left out, and which images and label files are alone.
    """

    def __init__(
        self,
        root: Root,
        split: Split,
        *,
        empty: Empty = "drop",
        masks: Literal["read", "skip"] = "read",
    ) -> None:
        check_split(split)
        root = local_root("yolo", root)
        images, labels = root / "images" / split, root / "labels" / split
        for folder in (images, labels):
            if not folder.is_dir():
                raise ValueError(f"There is no folder {str(folder)!r}.")
        names = class_names(root)
        table = ObjectTable()
        found = sorted(p for p in images.rglob("*") if p.suffix.lower() in ENDINGS)
        alone = {p for p in labels.rglob("*.txt") if p.name != NAMES}
        for number, image in enumerate(found):
            name = image.relative_to(images)
            row = table.image(name.as_posix(), number)
            file = labels / name.with_suffix(".txt")
            if file.is_file():
                _add(table, row, file, len(names))
                alone.discard(file)
            else:
                table.problems.add("images without a label file, taken for empty", name.as_posix())
        for file in sorted(alone):
            table.problems.add("label files without an image, left out", file.relative_to(labels).as_posix())
        super().__init__(images, table.close(), names, split, empty=empty, masks=masks)


def class_names(root: Path) -> tuple[str, ...]:
    """From classes.txt, or the `names:` of data.yaml: a list, or names under numbers that count from 0.

    Raises:
        ValueError: if there is neither, or none in it, or a number has no name.
    """
    listed, described = root / NAMES, root / "data.yaml"
    names: list[str] = []
    if listed.is_file():
        names = [line.strip() for line in listed.read_text(encoding="utf-8").rstrip().splitlines()]
        if "" in names:
            raise ValueError(
                f"{NAMES} has the name of a class in every line; line {names.index('') + 1} is empty."
            )
    elif described.is_file():
        names = _from_yaml(described.read_text(encoding="utf-8"))
    if not names:
        raise ValueError(
            f"The class names of {str(root)!r} stand in classes.txt, one per line, or data.yaml; got none."
        )
    return tuple(names)


def _from_yaml(text: str) -> list[str]:
    """`names: [a, b]`, `names: {0: a, 1: b}`, or a block of `- a` or of `0: a` lines below `names:`."""
    text = re.sub(r"^\s*(?:#.*)?\n", "", text, flags=re.MULTILINE)
    table = re.search(r"^names:\s*\{(.*?)\}", text, re.MULTILINE | re.DOTALL)
    if table:
        return _in_order(table[1].split(","))
    inline = re.search(r"^names:\s*(\[.*?\])", text, re.MULTILINE | re.DOTALL)
    if inline:
        try:
            return [str(name) for name in ast.literal_eval(inline[1])]
        except (ValueError, SyntaxError):
            return [part.strip().strip("'\"") for part in inline[1][1:-1].split(",") if part.strip()]
    block = re.search(r"^names:\s*\n((?:[ \t]*(?:-|\d+:)[^\n]*(?:\n|$))+)", text, re.MULTILINE)
    lines = block[1].splitlines() if block else []
    if all(re.match(r"\s*-", line) for line in lines):
        return [_bare(line.strip()[1:]) for line in lines]
    return _in_order(lines)


def _in_order(entries: Sequence[str]) -> list[str]:
    """Names by their numbers, from entries `0: a`.

    Raises:
        ValueError: if the numbers do not count from 0 without gaps.
    """
    names: dict[int, str] = {}
    for entry in filter(str.strip, entries):
        number, colon, name = entry.partition(":")
        if not colon or not number.strip().isdecimal():
            raise ValueError(f"data.yaml has class names as NUMBER: NAME; got {entry.strip()!r}.")
        if int(number) in names:
            raise ValueError(f"data.yaml gives the class number {int(number)} twice.")
        names[int(number)] = _bare(name)
    for wanted in range(len(names)):
        if wanted not in names:
            raise ValueError(
                f"data.yaml counts its classes from 0 without gaps; {wanted} of 0 to {max(names)} has no name."
            )
    return [names[wanted] for wanted in range(len(names))]


def _bare(name: str) -> str:
    """A name without its quotes, or else without the comment behind it."""
    name = name.strip()
    quoted = re.match(r"""(["'])(.*?)\1""", name)
    return quoted[2] if quoted else re.sub(r"\s+#.*$", "", name)


def _add(table: ObjectTable, row: int, file: Path, num_classes: int) -> None:
    """The objects of one file."""
    for i, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{file.name}, line {i}"
        try:
            first, *values = (float(word) for word in line.split())
        except ValueError:
            table.problems.add("lines that are not numbers, left out", where)
            continue
        if len(values) != 4 and (len(values) < 6 or len(values) % 2):
            table.problems.add("lines that are neither a box nor a polygon, left out", where)
            continue
        if not math.isfinite(first) or first != int(first) or not 0 <= first < num_classes:
            table.problems.add("objects of unknown classes, left out", where)
            continue
        polygon = values if len(values) > 4 else []
        if polygon:
            box = (min(values[0::2]), min(values[1::2]), max(values[0::2]), max(values[1::2]))
        else:
            x, y, width, height = values
            box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        wrong = check_box(box)
        if wrong is None and (box[0] >= 1 or box[1] >= 1 or box[2] <= 0 or box[3] <= 0):
            wrong = "boxes outside their image, left out"
        if wrong is None and polygon:
            wrong = check_polygon(polygon, 1.0)
        if wrong is not None:
            table.problems.add(wrong, where)
        else:
            table.add(row, box, int(first), polygons=[polygon] if polygon else [])


DATASETS = {"yolo": Yolo}
