"""Pascal VOC detection and sets in its layout: objects in XML files, one per image.

ROOT contains `JPEGImages/NAME.jpg`, `Annotations/NAME.xml` and `ImageSets/Main/{train,val}.txt`, one NAME per line;
or folders `{train,valid}/` with images and XML side by side. Box coordinates are 1-based and inclusive. Difficult
objects are ignored as COCO's crowds are. Images are looked up by NAME, with any extension; a size missing in the XML
is read from the image. The classes are Pascal VOC's, those of `labelmap.txt` or `classes.txt` in ROOT, or those of
the option.
"""

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from tetravit.data.colours import class_table
from tetravit.data.datasets.base import Root, Split, check_split, local_root
from tetravit.data.files import ending
from tetravit.data.lookup import Lookup, check_name, files_below, visible_files
from tetravit.data.object_table import LARGEST, ObjectTable, check_box
from tetravit.data.objects import (
    Empty,
    Missing,
    ObjectSet,
    check_options,
    find_images,
    place_root,
    unknown_classes,
)
from tetravit.data.palettes import VOC
from tetravit.data.parts import NAMES, PARTS, Parts, Place, dividing, find_part
from tetravit.data.text import read_lines
from tetravit.data.upright import Orientation, headers

BACKGROUND = ("background", "__background__", "_background_")  # not object classes
YES = ("1", "true", "yes")


class VocDet(ObjectSet):
    """Images with boxes from Pascal VOC XML.

    Args:
        root: the folder that contains images, annotations and lists.
        split: "train", "val" or "test".
        classes: names in label order; None: those of labelmap.txt or classes.txt, else the 20 of Pascal VOC.
        train, val: list names of these splits, in ImageSets/Main ("trainval").
        empty: "drop" or "keep" training images without objects.
        missing: missing images are an "error", or "skip" leaves them out.
        orientation: whether boxes of images with an EXIF rotation fit the "upright" or the "stored" pixels.
        parts: locations of the splits: lists, or folders of XML files.

    Raises:
        ValueError: in one line, if a list is missing or an annotation cannot be read.
    """

    def __init__(
        self,
        root: Root,
        split: Split,
        *,
        classes: tuple[str, ...] | None = None,
        train: str = "train",
        val: str = "val",
        empty: Empty = "drop",
        missing: Missing = "error",
        orientation: Orientation | None = None,
        parts: Parts | None = None,
    ) -> None:
        check_split(split, PARTS)
        check_options(empty=empty, missing=missing, orientation=orientation)
        parts = parts or Parts(None if root is None else os.fspath(root))
        place = parts.place(split)
        folder = local_root("voc_det", root or place_root(place))
        inner = sorted(folder.glob("VOCdevkit/VOC*"))
        folder = inner[-1] if len(inner) == 1 and not (folder / "Annotations").is_dir() else folder
        names = tuple(classes) if classes is not None else _class_names(folder)
        table = ObjectTable()
        listed, images, xml = _listed(
            folder, place, {"train": train, "val": val}.get(place.part, place.part), table
        )
        lookup = Lookup(images)
        trees = _trees(listed, xml, place.part)
        wanted = [_image_name(name, tree, lookup) for name, tree in zip(listed, trees, strict=True)]
        files = find_images(
            wanted, lookup, table.problems, listed_in=f"the {place.part} list", missing=missing
        )
        sizes = [_size(tree) for tree in trees]
        unknown = [i for i, file in enumerate(files) if file is not None and sizes[i] is None]
        for i, (height, width, _) in zip(
            unknown, headers(images, [files[i] or "" for i in unknown]).tolist(), strict=True
        ):
            sizes[i] = (height, width) if height else None
        labels = {name: i for i, name in enumerate(names)}
        strange: dict[str, None] = {}
        pending: list[str] = []
        for number, (name, tree, file, size) in enumerate(zip(listed, trees, files, sizes, strict=True)):
            if file is not None:
                row = table.image(file, number, *(_size(tree) or (0, 0)))
                for where, label in _add(
                    table, tree, row, f"{name}.xml", size, labels, orientation is not None
                ):
                    strange[label] = None
                    pending.append(where)
        cause = unknown_classes(strange, "data.options.classes names your own")
        for where in pending:
            table.problems.add(cause, where)
        super().__init__(
            images, table.close(), names, split, empty=empty, masks="skip", orientation=orientation
        )


def _class_names(root: Path) -> tuple[str, ...]:
    table = class_table(root)
    return tuple(n for n in table.names if n.lower() not in BACKGROUND) if table is not None else VOC[1:]


def _listed(root: Path, place: Place, name: str, table: ObjectTable) -> tuple[list[str], Path, Path]:
    """The image names of a split, the folder of its images, and that of its XML files."""
    images, xml = root / "JPEGImages", root / "Annotations"
    lists = root / "ImageSets" / "Main"
    if place.given:
        given = Path(place.given[0])
        if given.is_dir():
            return _beside(given, root)
        return _names(given, table), images, xml
    tried = [name] if name not in NAMES[place.part] else list(NAMES[place.part])
    for each in tried:
        if (lists / f"{each}.txt").is_file():
            return _names(lists / f"{each}.txt", table), images, xml
    if place.whole and xml.is_dir():
        return _stems(xml), images, xml
    if not lists.is_dir() and root.is_dir():
        for folder in (root, xml):
            part_folder = find_part(str(folder), place.part) if folder.is_dir() else None
            if part_folder is not None and _stems(Path(part_folder)):
                return _beside(Path(part_folder), root)
        if place.whole and visible_files(root, ".xml"):
            return _beside(root, root)
    return _names(lists / f"{name}.txt", table, dividing(place.part)), images, xml


def _beside(folder: Path, root: Path) -> tuple[list[str], Path, Path]:
    """A folder of XML files and their images, in it or in a folder beside it."""
    xml = folder / "Annotations" if (folder / "Annotations").is_dir() else folder
    for images in (
        folder / "JPEGImages",
        folder / "images",
        root / "JPEGImages" / folder.name,
        root / "images",
    ):
        if images.is_dir():
            return _stems(xml), images, xml
    return _stems(xml), folder, xml


def _stems(xml: Path) -> list[str]:
    return sorted(os.path.splitext(name)[0] for name in files_below(xml) if ending(name) == ".xml")


def _names(file: Path, table: ObjectTable, cure: str = "") -> list[str]:
    """The names in a list, one per line, with spaces; per-class lists have 1, 0 or -1 after them.

    Raises:
        ValueError: if the list cannot be read, or is empty.
    """
    try:
        lines = read_lines(file)
    except ValueError as error:
        raise ValueError(
            f"{str(error)[:-1]}; data.options.train and val name the lists of the parts.{cure}"
        ) from None
    if not lines:
        raise ValueError(f"{str(file)!r} lists no images.")
    if (
        all(re.search(r"\S\s+-?[01]$", line) for line in lines)
        and len({line.split()[-1] for line in lines}) > 1
    ):
        lines = [line.rsplit(maxsplit=1)[0] for line in lines if line.split()[-1] != "-1"]
    names = [
        re.sub(r"\.(jpe?g|png|bmp|tiff?|webp|xml)$", "", check_name(n, file.name), flags=re.I) for n in lines
    ]
    seen: set[str] = set()
    for name in names:
        if name in seen:
            table.problems.add("names that the list repeats, read once", f"{file.name}, {name}")
        seen.add(name)
    return list(dict.fromkeys(names))


def _trees(names: Sequence[str], folder: Path, part: str) -> list[ElementTree.Element]:
    """The parsed XML of each name.

    Raises:
        ValueError: if a file is missing, or cannot be parsed.
    """
    if not folder.is_dir():
        raise ValueError(f"There is no folder {str(folder)!r}.")
    lookup = Lookup(folder, {".xml"})
    files = [lookup.find(f"{name}.xml") or lookup.find(name) for name in names]
    missing = [name for name, file in zip(names, files, strict=True) if file is None]
    if missing:
        raise ValueError(
            f"{len(missing):,} of the {len(names):,} images of the {part} list have no XML in {str(folder)!r};"
            f" the first: {missing[0]!r}."
        )
    trees = []
    for name in files:
        file = folder / (name or "")
        try:
            trees.append(ElementTree.parse(file).getroot())
        except (OSError, ElementTree.ParseError, ValueError, LookupError) as error:
            raise ValueError(f"Cannot read {str(file)!r}: {_why(error)}.") from None
    return trees


def _image_name(name: str, tree: ElementTree.Element, lookup: Lookup) -> str:
    """The image of a name, with the extension given in the XML, else any; else the file named in the XML."""
    given = (tree.findtext("filename") or "").strip()
    suffix = Path(given.replace("\\", "/")).suffix or ".jpg"
    return f"{name}{suffix}" if lookup.find(f"{name}{suffix}") is not None or not given else given


def _size(tree: ElementTree.Element) -> tuple[int, int] | None:
    """Height and width; None: not in the XML."""
    width, height = (_number(tree, f"size/{side}") for side in ("width", "height"))
    known = 1 <= width <= LARGEST and 1 <= height <= LARGEST
    return (int(height), int(width)) if known else None


def _add(
    table: ObjectTable,
    tree: ElementTree.Element,
    row: int,
    file: str,
    size: tuple[int, int] | None,
    labels: dict[str, int],
    turned: bool,
) -> list[tuple[str, str]]:
    """Add the objects of one image; returns places and names of unknown classes."""
    strange = []
    for i, entry in enumerate(tree.iter("object"), start=1):
        where = f"{file}, object {i}"
        name = (entry.findtext("name") or "").strip()
        x1, y1, x2, y2 = (_number(entry, f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax"))
        box = (x1 - 1, y1 - 1, x2, y2)
        if name not in labels:
            strange.append((where, name))
            continue
        if entry.find("bndbox") is None:
            table.problems.add("objects without a box (bndbox), left out", where)
            continue
        wrong = check_box(box)
        height, width = (math.inf, math.inf) if size is None else (max(size), max(size)) if turned else size
        if wrong is None and (box[0] >= width or box[1] >= height or x2 <= 0 or y2 <= 0):
            wrong = "boxes outside their image, left out"
        if wrong is not None:
            table.problems.add(wrong, where)
        else:
            difficult = (entry.findtext("difficult") or "0").strip().lower() in YES
            table.add(row, box, labels[name], crowd=difficult)
    return strange


def _number(tree: ElementTree.Element, path: str) -> float:
    """The number in the text of an element; NaN if it is missing."""
    try:
        return float(tree.findtext(path) or "nan")
    except ValueError:
        return float("nan")


def _why(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return re.sub(r"\s+", " ", text).rstrip(".").lower()


DATASETS = {"voc_det": VocDet}
