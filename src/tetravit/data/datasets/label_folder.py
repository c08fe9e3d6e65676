"""Semantic segmentation data in folders: images and label maps.

ROOT/classes.txt one class per line, in label order; or labelmap.txt, class_dict.csv
ROOT/images/{train,val}/**/NAME.jpg
ROOT/labels/{train,val}/**/NAME.png one label per pixel; 255 is ignored

The splits may also be ROOT/{train,val}/images and .../labels. The folder of label maps may be called masks or
annotations, a label map NAME_mask.png. If the class list gives a colour per class (NAME R G B), label maps may be
colour-coded.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from tetravit.data.colours import FILES, class_table, given_colours
from tetravit.data.datasets.base import Root, Split, check_split, local_root
from tetravit.data.label_files import Pair, folders_below, pairs_of
from tetravit.data.label_maps import LabelMaps, Listed, Shifted
from tetravit.data.parts import NAMES, PARTS, Parts, Place, dividing, find_part
from tetravit.data.problems import Problems
from tetravit.data.upright import Orientation

IMAGES = ("images", "image", "imgs", "img", "jpegimages", "photos")
LABELS = ("labels", "masks", "annotations", "label", "mask", "labelmaps", "segmentationclass", "gt")


class LabelFolder(LabelMaps):
    """A folder with images, label maps and a list of class names.

    Args:
        root: the folder; its layout is at the top of this file.
        split: "train", "val" or "test".
        first: label of the first class in the label maps; smaller labels are ignored.
        values: labels of the classes in the label maps, in class order ([0, 255]); None: consecutive from `first`.
        colours: class colours of colour-coded label maps: {name: [R, G, B]}, or a list in class order; None: those of
            the class list.
        label_names: name pattern of label maps ("{name}_mask.png"); None: the name of the image, or that name with
            one suffix shared by all files.
        orientation: whether label maps of images with an EXIF rotation match the "upright" or the "stored" pixels.
        parts: folders of images per split; label maps lie in the matching folder of labels.

    Raises:
        ValueError: if a file or folder is missing, an option is out of range, or labels do not match the classes.
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
    """The image folder and the label folder of a split.

    Raises:
        ValueError: if they do not exist.
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
        f"{dividing(place.part)}"
    )


def _given(folder: Path, part: str) -> tuple[Path, Path]:
    """Subfolders of a folder; if it has none, the folder itself and its counterpart with label maps."""
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
    """The first subfolder of `folder` whose name is one of some names, ignoring case."""
    there = {name.lower(): name for name in folders_below(folder)}
    return next((folder / there[name] for name in names if name in there), None)


DATASETS = {"label_folder": LabelFolder}
