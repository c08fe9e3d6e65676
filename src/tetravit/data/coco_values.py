"""Parse COCO JSON written by various tools: equivalent spellings of a value are treated alike."""

import json
import math
import re
from array import array
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

from tetravit.data.object_table import LARGEST
from tetravit.data.text import read_text

Id = int | str


def number_of(value: Any) -> Id | None:
    """An id: a 64-bit integer in any spelling (1, 1.0, "1", "001"), else text; None: neither."""
    if type(value) is int and -(2**63) <= value < 2**63:  # the common case
        return value
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        text = value.strip()
        try:
            value = (
                int(text) if text.lstrip("+-").isascii() and text.lstrip("+-").isdecimal() else float(text)
            )
        except ValueError:
            return text or None
        if isinstance(value, float) and not value.is_integer():
            return text
    if isinstance(value, float):
        value = int(value) if value.is_integer() else None
    return value if isinstance(value, int) and -(2**63) <= value < 2**63 else None


def class_list(categories: Mapping[Id, Mapping[str, Any]], used: Container[object]) -> list[str]:
    """Category names in the order of their ids, without supercategories.

    A supercategory has no objects and is named by other categories as their `supercategory`.
    """
    groups = {
        row.get("supercategory")
        for n, row in categories.items()
        if row.get("supercategory") != name_of(row, n)
    }
    names: dict[str, None] = {}
    for number in sorted(categories, key=lambda n: (isinstance(n, str), n)):
        name = name_of(categories[number], number)
        if name not in groups or number in used:
            names[name] = None
    return list(names)


def parts_of(file: Path, parts: Sequence[str], *, masks: bool = True) -> dict[str, list[Any]]:
    """The content of a COCO JSON file, with a list under each name of `parts`.

    Raises:
        ValueError: in one line, if it is missing or not COCO JSON.
    """
    text = read_text(file)
    try:
        content = json.loads(text, object_hook=_packed if masks else _bare)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file.name} is not JSON: {error}.") from None
    for part in parts:
        if not isinstance(content, dict) or not isinstance(content.get(part), list):
            raise ValueError(f"{file.name} is not COCO's JSON: it holds no list of {part!r}.")
    return content


def categories_of(file: Path) -> tuple[list[Any], bytes]:
    """The categories of a file, and its bytes; objects are not parsed, which takes seconds for large files.

    Raises:
        ValueError: in one line, if the file cannot be read, or has no list of categories.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ValueError(f"Cannot read {str(file)!r}: {(error.strerror or str(error)).lower()}.") from None
    at = content.rfind(b'"categories"')
    tail = content[at:].decode("utf-8", errors="replace").partition(":")[2].lstrip() if at >= 0 else ""
    try:
        rows, _ = json.JSONDecoder().raw_decode(tail)
        if isinstance(rows, list) and all(isinstance(row, dict) and "id" in row for row in rows):
            return rows, content
    except ValueError:
        pass
    return parts_of(file, ("categories",), masks=False)["categories"], content


class Used(Container[object]):
    """Ids of the categories used in an annotation file, by text search for each."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def __contains__(self, number: object) -> bool:
        pattern = rb'"category_id"\s*:\s*"?' + re.escape(str(number).encode()) + rb'(\.0+)?"?\s*[,}]'
        return re.search(pattern, self.content) is not None


def _packed(table: dict[str, Any]) -> dict[str, Any]:
    """Convert polygons to arrays while parsing: a tenth of the memory."""
    given = table.get("segmentation")
    if isinstance(given, list) and given:
        if all(isinstance(value, int | float) for value in given):
            given = [given]  # one flat polygon
        elif _are_points(given):
            given = [[value for point in given for value in point]]
        if not isinstance(given[0], dict):
            table["segmentation"] = [_numbers(polygon) for polygon in given]
    return table


def _bare(table: dict[str, Any]) -> dict[str, Any]:
    """Drop masks while parsing, if they are not needed."""
    table.pop("segmentation", None)
    return table


def _are_points(values: Any) -> bool:
    """Whether a list is a polygon: three points or more, as x, y pairs."""
    return (
        isinstance(values, list)
        and len(values) > 2
        and all(
            isinstance(p, list) and len(p) == 2 and all(isinstance(v, int | float) for v in p) for p in values
        )
    )


def _numbers(values: Any) -> "array[float]":
    """An array of numbers; an empty one if any element is not a number."""
    if _are_points(values):
        values = [value for point in values for value in point]
    try:
        return array("d", values)
    except (TypeError, ValueError, OverflowError):
        return array("d")


def by_id(rows: list[Any], kind: str, file: str, *, repeated: Any = None) -> dict[Id, Mapping[str, Any]]:
    """Rows by id; repeated rows count once."""
    table: dict[Id, Mapping[str, Any]] = {}
    for row in rows:
        number = number_of(row.get("id")) if isinstance(row, dict) else None
        if number is None:
            value = row.get("id") if isinstance(row, dict) else None
            raise ValueError(
                f"{file}: every {kind} has an id, a whole number of 64 bits or a text; got {value!r}."
            )
        if number in table:
            key = "file_name" if kind == "image" else "name"
            first, second = table[number].get(key), row.get(key)
            if first != second:
                raise ValueError(
                    f"{file}: the {kind} id {number} is given twice, to {first!r} and {second!r}."
                )
            if repeated is not None:
                repeated(f"{kind}s that are listed twice, read once", f"{file}, {kind} {number}")
            continue
        table[number] = row
    return table


def name_of(row: Mapping[str, Any], number: Id) -> str:
    name = row.get("name")
    return str(number if name is None else name)


def size_of(row: Mapping[str, Any]) -> tuple[int, int] | None:
    """Height and width in whole pixels; None: missing or invalid."""
    sides = [number_of(row.get(key)) for key in ("height", "width")]
    if all(isinstance(side, int) and 0 < side <= LARGEST for side in sides):
        return sides[0], sides[1]  # type: ignore[return-value]
    return None


def crowd_of(value: Any) -> bool | None:
    """`iscrowd` in any spelling; None: neither 0 nor 1."""
    if value is None or value is False or value is True:
        return bool(value)
    number = number_of(value)
    return bool(number) if number in (0, 1) else None


def box_of(given: Any, polygons: Sequence[Any]) -> tuple[float, float, float, float] | None:
    """The box as x1 y1 x2 y2; if missing, the bounding box of the polygons."""
    if given in (None, []) and polygons:
        x, y = ([v for p in polygons for v in p[k::2]] for k in (0, 1))
        return min(x), min(y), max(x), max(y)
    try:
        x1, y1, width, height = (float(value) for value in given)
    except (TypeError, ValueError, OverflowError):
        return None
    return x1, y1, x1 + width, y1 + height


def area_of(value: Any) -> float | None:
    """The area; None: not a finite number of at least 0."""
    try:
        area = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return area if 0 <= area < math.inf else None
