"""COCO 2017 as released, and any other set annotated in COCO JSON.

ROOT contains `annotations/instances_{train,val}2017.json`, `train2017/...` and `val2017/...`. The layouts of Roboflow
(`train/_annotations.coco.json`, `valid/...`), CVAT and Label Studio are detected too; `data.train`, `data.val` and
`data.test` set other files. Labels number the categories of the training split by increasing id, without gaps;
categories of other splits are matched by name. Crowds are not trained on, and evaluated as COCO does.

Equivalent spellings are treated alike: ids as numbers or text, one flat polygon, an `iscrowd` of null, an area of 0
(replaced by that of the box). A missing image size is read from the file.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tetravit.data.coco_layout import Source, sources
from tetravit.data.coco_values import (
    Id,
    Used,
    area_of,
    box_of,
    by_id,
    categories_of,
    class_list,
    crowd_of,
    name_of,
    number_of,
    parts_of,
    size_of,
)
from tetravit.data.datasets.base import Root, Split, check_split, local_root
from tetravit.data.files import some
from tetravit.data.lookup import Lookup, check_name
from tetravit.data.object_table import FROM_SIDES, ObjectTable, check_box, check_polygon, runs
from tetravit.data.objects import (
    Empty,
    Masks,
    Missing,
    ObjectSet,
    check_options,
    find_images,
    place_root,
    unknown_classes,
)
from tetravit.data.parts import PARTS, Parts
from tetravit.data.upright import Orientation, headers

LISTS = ("images", "annotations", "categories")

BEYOND = 0.1  # share of a side by which a box may extend beyond its image without a message
REACHING = (
    "boxes that reach more than a tenth of a side beyond their image, cut at its edge; COCO's boxes are x, y, width,"
    " height, not x1 y1 x2 y2"
)
SHARES = (
    "boxes whose four numbers lie in 0..1, left out; COCO's boxes are x, y, width, height in pixels: multiply shares"
    " by the image's width and height"
)


class Coco(ObjectSet):
    """Images with objects from COCO JSON.

    Args:
        root: the folder that contains annotations and images.
        split: "train", "val" or "test".
        annotations, images: annotation file and image folder of a split, relative to the root; {split} stands for its
            name (train; val, valid or validation; test). None: those of the usual layouts.
        empty: "drop" or "keep" training images without objects.
        masks: "read", or "skip" to save time.
        missing: missing images are an "error", or "skip" leaves them out.
        orientation: whether annotations of images with an EXIF rotation fit the "upright" or the "stored" pixels.
        parts: locations of the splits.

    Raises:
        ValueError: in one line, if a file is missing or cannot be read, an id is ambiguous, or nothing is left. Other
            faults are left out and counted in `problems`.
    """

    def __init__(
        self,
        root: Root,
        split: Split,
        *,
        annotations: str | None = None,
        images: str | None = None,
        empty: Empty = "drop",
        masks: Masks = "read",
        missing: Missing = "error",
        orientation: Orientation | None = None,
        parts: Parts | None = None,
    ) -> None:
        check_split(split, PARTS)
        check_options(empty=empty, masks=masks, missing=missing, orientation=orientation)
        parts = parts or Parts(None if root is None else os.fspath(root))
        place = parts.place(split)
        folder = local_root("coco", root or place_root(place))
        if not folder.is_dir():
            raise ValueError(f"There is no folder {str(folder)!r}.")
        files = sources(folder, place, annotations, images)
        classes = None
        if place.part != "train":
            classes = _training_classes(folder, parts, annotations, images, files)
        unused_may_lack = split == "train" and empty == "drop"
        reader = Reader(folder, classes, masks, missing, orientation, unused_may_lack)
        for source in files:
            reader.read(source)
        table, names = reader.close()
        where = files[0].images if len(files) == 1 else folder
        super().__init__(where, table, names, split, empty=empty, masks=masks, orientation=orientation)


class Reader:
    """Reads COCO JSON files into one table.

    Args:
        root: base path of image names if there are several files.
        classes: names of the labels; None: the categories of the files.
        masks, missing, orientation: see `Coco`.
        unused_may_lack: images without annotations may be missing.
    """

    def __init__(
        self,
        root: Path,
        classes: Sequence[str] | None = None,
        masks: Masks = "read",
        missing: Missing = "error",
        orientation: Orientation | None = None,
        unused_may_lack: bool = False,
    ) -> None:
        self.root, self.masks, self.missing, self.orientation = root, masks, missing, orientation
        self.unused_may_lack = unused_may_lack
        self.known = classes
        self.table = ObjectTable()
        self.contents: list[tuple[Source, dict[str, list[Any]]]] = []

    def read(self, source: Source) -> None:
        self.contents.append((source, parts_of(source.file, LISTS, masks=self.masks == "read")))

    def close(self) -> tuple[ObjectTable, list[str]]:
        """The objects of all files, and their class names.

        Raises:
            ValueError: if files are inconsistent.
        """
        listed = [
            (by_id(content["categories"], "category", source.file.name), content["annotations"])
            for source, content in self.contents
        ]
        used = [
            {number_of(row.get("category_id")) for row in rows if isinstance(row, dict)} for _, rows in listed
        ]
        names = list(self.known) if self.known is not None else []
        if self.known is None:
            for (categories, _), ids in zip(listed, used, strict=True):
                names += [n for n in class_list(categories, ids) if n not in names]
        labels = {name: label for label, name in enumerate(names)}
        own_ids = len(self.contents) == 1
        for (source, content), (categories, _) in zip(self.contents, listed, strict=True):
            places = {
                number: labels[name]
                for number, row in categories.items()
                if (name := name_of(row, number)) in labels
            }
            spelled = {number: name_of(row, number) for number, row in categories.items()}
            self._add_file(source, content, places, spelled, names, own_ids)
        return self.table.close(), names

    def _lookup(self, source: Source) -> Lookup:
        return Lookup(source.images)

    def _add_file(
        self,
        source: Source,
        content: dict[str, list[Any]],
        labels: Mapping[Id, int],
        spelled: Mapping[Id, str],
        names: Sequence[str],
        own_ids: bool,
    ) -> None:
        file, table = source.file.name, self.table
        images = by_id(content["images"], "image", file, repeated=table.problems.add)
        listed = [check_name(row.get("file_name"), f"{file}, image {n}") for n, row in images.items()]
        annotations = [row if isinstance(row, dict) else {} for row in content["annotations"]]
        owners = [number_of(row.get("image_id")) for row in annotations]
        held, ids = set(owners), list(images)
        paths = find_images(
            listed,
            self._lookup(source),
            table.problems,
            listed_in=file,
            missing=self.missing,
            needed=lambda i: not self.unused_may_lack or ids[i] in held,
        )
        sizes = {n: size_of(row) for n, row in images.items()}
        unknown = [(n, name) for n, name in zip(images, paths, strict=True) if name and not sizes[n]]
        for (n, _), (height, width, _) in zip(
            unknown, headers(source.images, [name for _, name in unknown]).tolist(), strict=True
        ):
            sizes[n] = (height, width) if height else None
        given = {n for n, row in images.items() if size_of(row)}
        whole = own_ids and all(isinstance(n, int) for n in images)
        rows: dict[Id, int] = {}
        for number, name in zip(images, paths, strict=True):
            if name is None:
                continue
            height, width = sizes[number] if number in given and sizes[number] else (0, 0)  # type: ignore[misc]
            path = name if own_ids else _relative(source.images / name, self.root)
            rows[number] = table.image(path, int(number) if whole else len(table._ids) + 1, height, width)
        strange: dict[str, None] = {}
        pending: list[str] = []
        for i, (annotation, image_id) in enumerate(zip(annotations, owners, strict=True)):
            where = f"{file}, annotation {annotation.get('id', i)}"
            category_id = number_of(annotation.get("category_id"))
            if image_id is None or image_id not in images:
                table.problems.add("annotations of images that are not listed, left out", where)
            elif image_id not in rows:
                table.problems.add("annotations of images that are left out, left out with them", where)
            elif category_id is None or category_id not in labels:
                value = annotation.get("category_id")
                strange[spelled.get(category_id, str(value)) if category_id is not None else str(value)] = (
                    None
                )
                pending.append(where)
            elif (size := sizes[image_id]) is None:
                table.problems.add("annotations of images that cannot be read, left out", where)
            else:
                self._add(annotation, rows[image_id], labels[category_id], size, where)
        lists = f"the categories are {some(names)}"
        cure = f'the list "categories" of {file} is to name every category_id'
        if self.known is not None:
            cure = "they are those of the training images, and others are not scored"
        cause = unknown_classes(strange, f"{lists}: {cure}")
        for where in pending:
            table.problems.add(cause, where)

    def _add(
        self, annotation: Mapping[str, Any], row: int, label: int, size: tuple[int, int], where: str
    ) -> None:
        """Add one annotation, or count why it is left out."""
        problems = self.table.problems
        turned = self.orientation is not None
        sides = (max(size), max(size)) if turned else size  # may refer to the stored pixels
        crowd = crowd_of(annotation.get("iscrowd"))
        if crowd is None:
            problems.add("annotations whose iscrowd is neither 0 nor 1, left out", where)
            return
        polygons: list[Any] = []
        code = b""
        if self.masks == "read":
            polygons, code = self._mask(annotation.get("segmentation"), size, where)
        box = box_of(annotation.get("bbox"), polygons)
        if box is None:
            problems.add("annotations without a box x, y, width, height, left out", where)
            return
        wrong = check_box(box)
        if wrong is None and min(box) >= 0 and max(box) <= 1 < min(size):
            wrong = SHARES
        if wrong is None and (box[0] >= sides[1] or box[1] >= sides[0] or box[2] <= 0 or box[3] <= 0):
            wrong = "boxes outside their image, left out"
        if wrong is not None:
            problems.add(wrong, where)
            return
        if box[2] > (1 + BEYOND) * sides[1] or box[3] > (1 + BEYOND) * sides[0]:
            problems.add(REACHING, where)
        area = FROM_SIDES if annotation.get("area") in (None, 0) else area_of(annotation["area"])
        if area is None:
            problems.add("areas that are no finite number from 0 up, taken from the box", where)
            area = FROM_SIDES
        self.table.add(row, box, label, area=area or FROM_SIDES, crowd=crowd, polygons=polygons, code=code)

    def _mask(self, given: Any, size: tuple[int, int], where: str) -> tuple[list[Any], bytes]:
        """Polygons and run lengths of a mask; a fault is counted and drops only the mask."""
        problems = self.table.problems
        if isinstance(given, list) and len(given) == 1 and isinstance(given[0], dict):
            given = given[0]
        if isinstance(given, dict):
            try:
                return [], runs(given, *size, turned=self.orientation is not None)
            except ValueError as error:
                problems.add(f"run lengths {error}, no mask", where)
        elif isinstance(given, list):
            polygons = []
            for polygon in given:
                wrong = check_polygon(polygon, max(size))
                if wrong is None:
                    polygons.append(polygon)
                else:
                    problems.add(wrong, where)
            return polygons, b""
        elif given is not None:
            problems.add("segmentations that are neither polygons nor run lengths, no mask", where)
        return [], b""


def read(file: Path, images: Path | None = None) -> tuple[ObjectTable, list[str]]:
    """The objects and category names of a COCO JSON file with its images in the same folder.

    Raises:
        ValueError: in one line, if it is missing, cannot be read, or is inconsistent.
    """
    reader = Reader(file.parent)
    reader.read(Source(file, images or file.parent))
    return reader.close()


def numbers(file: Path) -> tuple[dict[str, int], dict[str, int]]:
    """Ids in a COCO JSON file: of images by file name, of categories by name. Annotations are optional.

    Raises:
        ValueError: in one line, if it is missing, cannot be read, repeats a name, or has an id that is not a number.
    """
    content = parts_of(file, ("images", "categories"))
    tables: list[dict[str, int]] = []
    for part, kind, key in (("images", "image", "file_name"), ("categories", "category", "name")):
        ids: dict[str, int] = {}
        for number, row in by_id(content[part], kind, file.name).items():
            name = str(row.get(key))
            if not isinstance(number, int):
                raise ValueError(
                    f"{file.name}: results name a {kind} by a whole number; the id of {name!r} is {number!r}."
                )
            if name in ids:
                raise ValueError(f"{file.name}: the {kind} {name!r} has two ids, {ids[name]} and {number}.")
            ids[name] = number
        tables.append(ids)
    return tables[0], tables[1]


def _training_classes(
    root: Path, parts: Parts, annotations: str | None, images: str | None, own: Sequence[Source]
) -> list[str] | None:
    """The classes of the training split; None: it does not exist, or is this split."""
    try:
        files = sources(root, parts.place("train"), annotations, images)
    except ValueError:
        return None
    if [source.file for source in files] == [source.file for source in own]:
        return None
    names: dict[str, None] = {}
    for source in files:
        rows, text = categories_of(source.file)
        categories = by_id(rows, "category", source.file.name)
        names |= dict.fromkeys(class_list(categories, Used(text)))
    return list(names)


def _relative(file: Path, root: Path) -> str:
    """The path relative to a root; unchanged if it lies elsewhere."""
    return file.relative_to(root).as_posix() if file.is_relative_to(root) else str(file)


DATASETS = {"coco": Coco}
