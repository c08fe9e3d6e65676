"""Pascal VOC: objects as XML files, one per image, and whatever is laid out like it.

ROOT holds `JPEGImages/NAME.jpg`, `Annotations/NAME.xml` and `ImageSets/Main/{train,val}.txt`, a NAME per line. Boxes
count pixels from 1, and include the last. Difficult objects are kept apart, as COCO's crowds are.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from tetravit.data.datasets.base import Root, Split, check_split, local_root
from tetravit.data.objects import LARGEST, Empty, ObjectSet, ObjectTable, check_box, check_name
from tetravit.data.palettes import VOC


class VocDet(ObjectSet):
    """Images with boxes from Pascal VOC's XML.

    Args:
        root: the folder that holds images, annotations and lists.
        split: "train" or "val".
        classes: names in the order of the labels; None: the 20 of Pascal VOC.
        train, val: the lists of each part, in ImageSets/Main ("trainval").
        empty: what happens to training images without an object: "drop" or "keep".

    Raises:
        ValueError: in one line, if a list is missing or an annotation does not read.
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
    ) -> None:
        check_split(split)
        root = local_root("voc_det", root)
        names = tuple(classes) if classes is not None else VOC[1:]  # without the background
        chosen = root / "ImageSets" / "Main" / f"{train if split == 'train' else val}.txt"
        try:
            images = chosen.read_text(encoding="utf-8").split()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"Cannot read the list of images {str(chosen)!r}: {_why(error)}.") from None
        table = ObjectTable()
        labels = {name: i for i, name in enumerate(names)}
        for name in _repeated(images):
            table.problems.add("names that the list repeats, read once", f"{chosen.name}, {name}")
        for number, name in enumerate(dict.fromkeys(images)):
            _add(table, root, check_name(name, chosen.name), number, labels)
        super().__init__(root / "JPEGImages", table.close(), names, split, empty=empty, masks="skip")


def _repeated(names: Sequence[str]) -> list[str]:
    """Every name that stood before, each time."""
    seen: set[str] = set()
    return [name for name in names if name in seen or seen.add(name)]  # type: ignore[func-returns-value]


def _add(table: ObjectTable, root: Path, name: str, number: int, labels: dict[str, int]) -> None:
    """One image with its objects."""
    file = root / "Annotations" / f"{name}.xml"
    try:
        tree = ElementTree.parse(file).getroot()
    except (OSError, ElementTree.ParseError) as error:
        raise ValueError(f"Cannot read {str(file)!r}: {_why(error)}.") from None
    width, height = (_number(tree, f"size/{side}") for side in ("width", "height"))
    known = 1 <= width <= LARGEST and 1 <= height <= LARGEST
    image = tree.findtext("filename") or f"{name}.jpg"
    suffix = Path(check_name(image, file.name)).suffix or ".jpg"
    row = table.image(f"{name}{suffix}", number, *((int(height), int(width)) if known else (0, 0)))
    for i, entry in enumerate(tree.iter("object"), start=1):
        where = f"{file.name}, object {i}"
        label = labels.get((entry.findtext("name") or "").strip())
        x1, y1, x2, y2 = (_number(entry, f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax"))
        box = (x1 - 1, y1 - 1, x2, y2)
        wrong = check_box(box)
        if label is None:
            table.problems.add("objects of unknown classes, left out", where)
        elif not known:
            table.problems.add("objects of images whose size is not said, left out", where)
        elif wrong is not None:
            table.problems.add(wrong, where)
        elif box[0] >= width or box[1] >= height or x2 <= 0 or y2 <= 0:
            table.problems.add("boxes outside their image, left out", where)
        else:
            difficult = (entry.findtext("difficult") or "0").strip() == "1"
            table.add(row, box, label, crowd=difficult)


def _number(tree: ElementTree.Element, path: str) -> float:
    """A number in the text of an element; NaN where there is none."""
    try:
        return float(tree.findtext(path) or "nan")
    except ValueError:
        return float("nan")


def _why(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return re.sub(r"\s+", " ", text).rstrip(".").lower()


DATASETS = {"voc_det": VocDet}
