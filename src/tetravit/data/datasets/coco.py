"""COCO 2017 as released, and any other set whose annotations are COCO's JSON.

ROOT holds `annotations/instances_{train,val}2017.json`, `train2017/...` and `val2017/...`. Labels count the
categories in the order of their ids, gaps closed. Crowds are kept apart: not trained on, evaluated as COCO does.
"""

import json
import math
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeGuard

from tetravit.data.datasets.base import Root, Split, check_split, local_root
from tetravit.data.objects import (
    FROM_SIDES,
    LARGEST,
    Empty,
    ObjectSet,
    ObjectTable,
    check_box,
    check_name,
    check_polygon,
    runs,
)

ANNOTATIONS, IMAGES = "annotations/instances_{split}2017.json", "{split}2017"
PARTS = ("images", "annotations", "categories")


class Coco(ObjectSet):
    """Images with objects from COCO's JSON.

    Args:
        root: the folder that holds annotations and images.
        split: "train" or "val".
        annotations, images: the file and the folder of a split, below the root; {split} stands for its name.
        empty: what happens to training images without an object: "drop" or "keep".
        masks: "read" them, or "skip" them to save time.

    Raises:
        ValueError: in one line, if a file is missing or does not read, an id is given twice, a file name leads out
            of the folder, or nothing is left. What can be left out is, and `problems` counts it.
    """

    def __init__(
        self,
        root: Root,
        split: Split,
        *,
        annotations: str = ANNOTATIONS,
        images: str = IMAGES,
        empty: Empty = "drop",
        masks: Literal["read", "skip"] = "read",
    ) -> None:
        check_split(split)
        root = local_root("coco", root)
        file, folder = (root / text.replace("{split}", split) for text in (annotations, images))
        if not folder.is_dir():
            raise ValueError(f"There is no folder {str(folder)!r}.")
        table, names = read(file)
        super().__init__(folder, table, names, split, empty=empty, masks=masks)


def read(file: Path) -> tuple[ObjectTable, list[str]]:
    """COCO's JSON -> its objects, and the names of its categories in the order of their ids.

    Raises:
        ValueError: in one line, if it is missing, does not read, or contradicts itself.
    """
    found = _parts(file, PARTS)
    table = ObjectTable()
    categories = _by_id(found["categories"], "category", file.name)
    labels = {number: label for label, number in enumerate(sorted(categories))}
    names = [str(categories[number].get("name", number)) for number in sorted(categories)]
    rows: dict[int, int] = {}
    sizes: dict[int, tuple[int, int]] = {}
    for number, image in _by_id(found["images"], "image", file.name).items():
        name = check_name(image.get("file_name"), f"{file.name}, image {number}")
        height, width = sides = image.get("height"), image.get("width")
        if not all(_whole(side) and 0 < side <= LARGEST for side in sides):
            raise ValueError(
                f"{file.name}, image {number}: height and width are whole pixels from 1 to {LARGEST:,};"
                f" got {list(sides)}."
            )
        rows[number] = table.image(name, number, height, width)  # type: ignore[arg-type]
        sizes[number] = height, width  # type: ignore[assignment]
    for number, annotation in _by_id(found["annotations"], "annotation", file.name).items():
        where = f"{file.name}, annotation {number}"
        image_id, category_id = annotation.get("image_id"), annotation.get("category_id")
        if not _whole(image_id) or image_id not in rows:
            table.problems.add("annotations of images that are not listed, left out", where)
        elif not _whole(category_id) or category_id not in labels:
            table.problems.add("annotations of unknown categories, left out", where)
        else:
            _add(table, annotation, rows[image_id], labels[category_id], sizes[image_id], where)
    return table.close(), names


def numbers(file: Path) -> tuple[dict[str, int], dict[str, int]]:
    """The ids that COCO's JSON gives images, by file name, and categories, by name. It may lack annotations.

    Raises:
        ValueError: in one line, if it is missing, does not read, or a name is given twice.
    """
    found = _parts(file, ("images", "categories"))
    answer: list[dict[str, int]] = []
    for part, kind, key in (("images", "image", "file_name"), ("categories", "category", "name")):
        ids: dict[str, int] = {}
        for number, row in _by_id(found[part], kind, file.name).items():
            name = str(row.get(key))
            if name in ids:
                raise ValueError(f"{file.name}: the {kind} {name!r} has two ids, {ids[name]} and {number}.")
            ids[name] = number
        answer.append(ids)
    return answer[0], answer[1]


def _parts(file: Path, parts: Sequence[str]) -> dict[str, list[Any]]:
    """What a file of COCO's JSON holds, with a list under each name of `parts`."""
    try:
        with file.open(encoding="utf-8") as text:
            found = json.load(text, object_hook=_packed)
    except OSError as error:
        raise ValueError(f"Cannot read {str(file)!r}: {(error.strerror or str(error)).lower()}.") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file.name} is not JSON: {error}.") from None
    for part in parts:
        if not isinstance(found, dict) or not isinstance(found.get(part), list):
            raise ValueError(f"{file.name} is not COCO's JSON: it holds no list of {part!r}.")
    return found  # type: ignore[no-any-return]


def _packed(table: dict[str, Any]) -> dict[str, Any]:
    """Polygons as arrays, as soon as they are read: a tenth of the memory."""
    polygons = table.get("segmentation")
    if isinstance(polygons, list):
        table["segmentation"] = [_numbers(polygon) for polygon in polygons]
    return table


def _numbers(values: Any) -> "array[float]":
    """Numbers as an array; an empty one where something else is among them."""
    try:
        return array("d", values)
    except (TypeError, ValueError, OverflowError):
        return array("d")


def _whole(value: Any) -> TypeGuard[int]:
    """Whether a value is a whole number that fits into 64 bits."""
    return type(value) is int and -(2**63) <= value < 2**63


def _by_id(rows: list[Any], kind: str, file: str) -> dict[int, Mapping[str, Any]]:
    """Rows by their ids, each given once."""
    found: dict[int, Mapping[str, Any]] = {}
    for row in rows:
        number = row.get("id") if isinstance(row, dict) else None
        if not _whole(number):
            raise ValueError(f"{file}: every {kind} has an id, a whole number of 64 bits; got {number!r}.")
        if number in found:
            raise ValueError(f"{file}: the {kind} id {number} is given twice.")
        found[number] = row
    return found


def _add(
    table: ObjectTable, annotation: Mapping[str, Any], row: int, label: int, size: tuple[int, int], where: str
) -> None:
    """One annotation, or a count of why it is left out."""
    try:
        x, y, width, height = (float(value) for value in annotation["bbox"])
    except (KeyError, TypeError, ValueError, OverflowError):
        table.problems.add("annotations without a box x, y, width, height, left out", where)
        return
    box = (x, y, x + width, y + height)
    wrong = check_box(box)
    if wrong is None and (x >= size[1] or y >= size[0] or box[2] <= 0 or box[3] <= 0):
        wrong = "boxes outside their image, left out"
    if wrong is not None:
        table.problems.add(wrong, where)
        return
    crowd = annotation.get("iscrowd", 0)
    if crowd not in (0, 1):
        table.problems.add("annotations whose iscrowd is neither 0 nor 1, left out", where)
        return
    given = annotation.get("segmentation")
    polygons: list[Any] = []
    code = b""
    if isinstance(given, dict):
        try:
            code = runs(given, *size)
        except ValueError as error:
            table.problems.add(f"run lengths {error}, left out", where)
            return
    elif given is not None and not isinstance(given, list):
        table.problems.add("segmentations that are neither polygons nor run lengths, left out", where)
        return
    elif given:
        for polygon in given:
            wrong = check_polygon(polygon, max(size))
            if wrong is None:
                polygons.append(polygon)
            else:
                table.problems.add(wrong, where)
        if not polygons:
            return
    area = _area(annotation["area"]) if "area" in annotation else FROM_SIDES
    if area is None:
        table.problems.add("areas that are no finite number from 0 up, taken from the box", where)
        area = FROM_SIDES
    table.add(row, box, label, area=area, crowd=bool(crowd), polygons=polygons, code=code)


def _area(value: Any) -> float | None:
    """An area as given; None: it is no finite number from 0 up."""
    try:
        area = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return area if 0 <= area < math.inf else None


DATASETS = {"coco": Coco}
