"""Your own images and label maps, in folders.

ROOT/classes.txt                    a class per line, in the order of their numbers; or labelmap.txt, class_dict.csv
ROOT/images/{train,val}/**/NAME.jpg
ROOT/labels/{train,val}/**/NAME.png a number per pixel; 255: no class

The parts may also be ROOT/{train,val}/images and .../labels, the label maps be called masks or annotations, and each
NAME_mask.png. Where the list of classes has a colour for each (NAME R G B), label maps may be pictures of them.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from tetravit.data.colours import FILES, class_table, given_colours
from tetravit.data.datasets.base import Root, Split, check_split, local_root
from tetravit.data.label_files import Pair, folders_below, pairs_of
from tetravit.data.label_maps import LabelMaps, Listed, Shifted
from tetravit.data.parts import NAMES, PARTS, Parts, Place, find_part
from tetravit.data.problems import Problems
from tetravit.data.upright import Orientation

IMAGES = ("images", "image", "imgs", "img", "jpegimages", "photos")
LABELS = ("labels", "masks", "annotations", "label", "mask", "labelmaps", "segmentationclass", "gt")


class LabelFolder(LabelMaps):
    """A folder of your own: images, label maps and the names of their classes.

    Args:
        root: the folder, see above.
        split: "train", "val" or "test".
        first: the number that the first class has in the files; smaller ones are no class.
        values: the numbers of the classes in the files, in their order ([0, 255]); None: they count from `first`.
        colours: of the classes, where label maps are pictures: {name: [R, G, B]}, or a list in their order; None: as
            the list of classes has them.
        label_names: what the label map of an image is called ("{name}_mask.png"); None: as the image, or with one
            addition that is the same for all.
        orientation: whether label maps of images with an EXIF rotation fit the "upright" or the "stored" pixels.
        parts: where the images of the parts lie; their label maps lie beside them, under the other name.

    Raises:
        ValueError: if the folder lacks something, an option is out of range, or label maps do not fit the classes.
    """

    def __init__(
        self,
        root: Root,
        split: Split,
        *,
        first: int = 0,
        values: Sequence[int] | None = None,
        colours: Mapping[str, Sequence[int]] | Sequence[Sequence[int]] | None = None,
        label_names: str | None = None,
        orientation: Orientation | None = None,
        parts: Parts | None = None,
    ) -> None:
        check_split(split, PARTS)
        folder = local_root("label_folder", root)
        if not 0 <= first <= 254:
            raise ValueError(f"first is the number of the first class, 0 to 254; got {first!r}.")
        table = class_table(folder)
        if table is None:
            raise ValueError(
                f"There is no file {str(folder / 'classes.txt')!r}; it names the classes, one per line"
                f" ({', '.join(FILES[1:])} are read too)."
            )
        names = table.names
        if not 1 <= len(names) <= 255:
            raise ValueError(f"{str(table.file)!r} names 1 to 255 classes, one per line; got {len(names)}.")
        if values is not None and (len(values) != len(names) or len(set(values)) != len(values) or first):
            raise ValueError(
                f"values has a number of its own for each of the {len(names)} classes, without first; got"
                f" {list(values)!r}."
            )
        painted = table.colours if colours is None else given_colours(colours, names)
        problems = Problems()
        pairs: list[Pair] = []
        for images, labels in _folders(folder, (parts or Parts(os.fspath(folder))).place(split)):
            pairs += pairs_of(images, labels, label_names=label_names, problems=problems)
        super().__init__(
            pairs,
            names,
            root=folder,
            convert=Listed(values) if values is not None else Shifted(first) if first else None,
            colours=painted,
            orientation=orientation,
            split=split,
            problems=problems,
        )


def _folders(root: Path, place: Place) -> list[tuple[Path, Path]]:
    """The folders of images and of label maps of a part.

    Raises:
        ValueError: if there are none.
    """
    if place.given:
        return [_given(Path(path), place.part) for path in place.given]
    images, labels = _named(root, IMAGES), _named(root, LABELS)
    if images is not None:
        inside = find_part(str(images), place.part)
        if inside is not None:
            name = Path(inside).name
            beside = labels and find_part(str(labels), place.part)
            return [(Path(inside), Path(beside) if beside else (labels or root / LABELS[0]) / name)]
        if place.whole:
            return [(images, labels or root / LABELS[0])]
    own = find_part(str(root), place.part) if root.is_dir() else None
    if own is not None:
        return [_given(Path(own), place.part)]
    lacking = (images or root / IMAGES[0]) / NAMES[place.part][0]
    raise ValueError(
        f"There is no folder {str(lacking)!r}; data.{place.part}=FOLDER names that of the images."
    )


def _given(folder: Path, part: str) -> tuple[Path, Path]:
    """The folders that a folder holds; or itself, and the one that has the name of label maps in its path."""
    if not folder.is_dir():
        raise ValueError(f"data.{part} names {str(folder)!r}, which is no folder.")
    images, labels = _named(folder, IMAGES), _named(folder, LABELS)
    if images is not None and labels is not None:
        return images, labels
    steps = list(folder.parts)
    for i in range(len(steps) - 1, -1, -1):
        if steps[i].lower() in IMAGES:
            above = Path(*steps[:i])
            other = _named(above, LABELS) or above / LABELS[0]
            return folder, other.joinpath(*steps[i + 1 :])
    return images or folder, labels or folder / LABELS[0]


def _named(folder: Path, names: Sequence[str]) -> Path | None:
    """The folder in `folder` with the first of some names, in any letters."""
    there = {name.lower(): name for name in folders_below(folder)}
    return next((folder / there[name] for name in names if name in there), None)


DATASETS = {"label_folder": LabelFolder}
