"""ADE20K as released for scene parsing (Zhou et al. 2017): 20,210 training and 2,000 validation images, 150 classes.

ROOT, or ROOT/ADEChallengeData2016, contains images/ and annotations/, each with training/ and validation/. In the
files 0 is ignored and classes start at 1. If ROOT/objectInfo150.txt lists other classes than the 150 released ones,
those are used: custom sets can have this layout.
"""

import os
from pathlib import Path

from tetravit.data.datasets.base import Root, Split, check_split, local_root
from tetravit.data.label_maps import LabelMaps, Shifted, pairs_of
from tetravit.data.palettes import ade20k
from tetravit.data.parts import PARTS, Parts, part_folder
from tetravit.data.problems import Problems
from tetravit.data.text import read_text
from tetravit.data.upright import Orientation

LAYOUT = "ROOT/images/{training,validation} and ROOT/annotations/{training,validation}"
ARCHIVE = "ADEChallengeData2016"


class ADE20K(LabelMaps):
    """ADE20K: scene parsing, 150 classes.

    Labels are uint8, 0 to 149, and 255 for ignored pixels.

    Args:
        root: the folder; its layout is at the top of this file.
        split: "train", "val" or "test".
        orientation: whether label maps of images with an EXIF rotation fit the "upright" or the "stored" pixels.
        parts: folders of images; label maps lie in the folder of the same name in annotations/.

    Raises:
        ValueError: if folders or label maps are missing.
    """

    def __init__(
        self, root: Root, split: Split, *, orientation: Orientation | None = None, parts: Parts | None = None
    ) -> None:
        check_split(split, PARTS)
        folder = local_root("ade20k", root)
        folder = folder / ARCHIVE if (folder / ARCHIVE).is_dir() else folder
        place = (parts or Parts(os.fspath(folder))).place(split)
        given = place.given or (part_folder(str(folder / "images"), place.part, LAYOUT),)
        problems = Problems()
        pairs = [
            pair
            for images in given
            for pair in pairs_of(Path(images), folder / "annotations" / Path(images).name, problems=problems)
        ]
        super().__init__(
            pairs,
            _classes(folder / "objectInfo150.txt"),
            root=folder,
            convert=Shifted(1),
            orientation=orientation,
            split=split,
            problems=problems,
        )


def _classes(file: Path) -> tuple[str, ...]:
    """The released 150 classes, or those in a file: one row each, the name in the last column.

    A file that agrees with most of the released names is taken as the released one, despite other spellings.
    """
    names, _ = ade20k()
    if not file.is_file():
        return names
    rows = [line.split("\t") for line in read_text(file).splitlines()[1:] if line.strip()]
    listed = tuple(row[-1].split(",")[0].strip() for row in rows)
    same = sum(a == b for a, b in zip(listed, names, strict=False))
    return names if len(listed) == len(names) and 2 * same > len(names) else listed


DATASETS = {"ade20k": ADE20K}
