"""Class lists, and class colours of colour-coded label maps.

classes.txt             NAME per line, with or without its colour: NAME R G B, R G B NAME, NAME #RRGGBB
labelmap.txt NAME:R,G,B:PARTS:ACTIONS (CVAT)
class_dict.csv NAME,R,G,B below a header line
label_colors.txt R G B NAME (CamVid)
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tetravit.data.palettes import Colour
from tetravit.data.text import read_text

FILES = ("classes.txt", "labelmap.txt", "class_dict.csv", "label_colors.txt", "labels.txt")
LINES = (
    r"(?P<name>.*\S)\s*[\s,:;]\s*(?P<r>\d{1,3})[\s,;]+(?P<g>\d{1,3})[\s,;]+(?P<b>\d{1,3})\s*(?::.*)?",
    r"(?P<r>\d{1,3})[\s,;]+(?P<g>\d{1,3})[\s,;]+(?P<b>\d{1,3})[\s,:;]+(?P<name>\S.*)",
    r"(?P<name>.*\S)[\s,:;]+#(?P<hex>[0-9a-fA-F]{6})\s*",
)


@dataclass(frozen=True)
class ClassTable:
    """names: one per class. colours: one per class; None: no colours. file: the source."""

    names: tuple[str, ...]
    colours: tuple[Colour, ...] | None
    file: Path


def class_table(root: Path) -> ClassTable | None:
    """The class list in `root`; None: there is none.

    Raises:
        ValueError: in one line, if the file cannot be read.
    """
    file = next((root / name for name in FILES if (root / name).is_file()), None)
    return None if file is None else read_classes(file)


def read_classes(file: Path) -> ClassTable:
    """The classes in a file, with colours if every line has one.

    Raises:
        ValueError: if the file cannot be read, or two classes have the same colour.
    """
    lines = [line.strip() for line in read_text(file).splitlines()]
    if file.suffix.lower() == ".csv":
        lines = lines[1:] if lines and not re.search(r"\d\s*$", lines[0]) else lines
    if file.name != "classes.txt":
        lines = [line for line in lines if not line.startswith("#")]
    lines = [line for line in lines if line]
    for pattern in LINES:
        rows = [re.fullmatch(pattern, line) for line in lines]
        if rows and all(rows):
            names = tuple(row["name"].strip(" ,:;") for row in rows if row)
            colours = tuple(_colour(row) for row in rows if row)
            return ClassTable(names, check_colours(colours, names, file.name), file)
    if file.name == "labelmap.txt":
        lines = [line.partition(":")[0] for line in lines]
    return ClassTable(tuple(lines), None, file)


def check_colours(colours: Sequence[Sequence[int]], names: Sequence[str], where: str) -> tuple[Colour, ...]:
    """Class colours, validated.

    Raises:
        ValueError: for an invalid colour, a colour of two classes, or a number of colours other than that of classes.
    """
    checked: dict[Colour, str] = {}
    if len(colours) != len(names):
        raise ValueError(f"{where} has {len(colours)} colours for {len(names)} classes.")
    for colour, name in zip(colours, names, strict=True):
        values = tuple(colour)
        if len(values) != 3 or not all(type(v) is int and 0 <= v <= 255 for v in values):
            raise ValueError(
                f"{where}: the colour of {name!r} is red, green, blue from 0 to 255; got {colour!r}."
            )
        if values in checked:
            raise ValueError(f"{where}: {checked[values]!r} and {name!r} have one colour, {values}.")
        checked[values] = name
    return tuple(checked)


def given_colours(
    value: Mapping[str, Sequence[int]] | Sequence[Sequence[int]], names: Sequence[str]
) -> tuple[Colour, ...]:
    """The option `colours`: one colour per class, by name or in order.

    Raises:
        ValueError: as `check_colours`, or if a class is missing.
    """
    if isinstance(value, Mapping):
        missing = [name for name in names if name not in value]
        if missing:
            raise ValueError(f"data.options.colours lacks the class {missing[0]!r}.")
        value = [value[name] for name in names]
    return check_colours(list(value), names, "data.options.colours")


def labels_of_colours(pixels: np.ndarray, colours: Sequence[Colour], unknown: int) -> np.ndarray:
    """Pixels (H, W, 3) -> class indices, uint8 (H, W); `unknown` for other colours."""
    codes = (pixels[..., 0].astype(np.int32) << 16) | (pixels[..., 1].astype(np.int32) << 8) | pixels[..., 2]
    known = np.array([red << 16 | green << 8 | blue for red, green, blue in colours])
    order = np.argsort(known)
    place = np.searchsorted(known[order], codes).clip(max=len(known) - 1)
    return np.where(known[order][place] == codes, order[place], unknown).astype(np.uint8)


def _colour(row: "re.Match[str]") -> Colour:
    groups = row.groupdict()
    if groups.get("hex"):
        red, green, blue = bytes.fromhex(groups["hex"])
        return red, green, blue
    return int(groups["r"]), int(groups["g"]), int(groups["b"])
