"""ADE20K as released for scene parsing (Zhou et al. 2017): 20,210 images to train, 2,000 to validate, 150 classes.

ROOT, or ROOT/ADEChallengeData2016, holds images/ and annotations/, each with training/ and validation/. In the
files 0 is no class and classes count from 1. Where ROOT/objectInfo150.txt lists others than the 150 released classes,
these are the classes: that is how sets of one's own come in this layout.
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
    """ADE20K: photographs of scenes, 150 classes of pixels.

    Labels are uint8, 0 to 149, and 255 for pixels without a class.

    Args:
        root: the folder, see above.
        split: "train", "val" or "test".
        orientation: whether label maps of images with an EXIF rotation fit the "upright" or the "stored" pixels.
        parts: where the images lie; their label maps lie in the folder of the same name in annotations/.

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
    """The released 150, or those of a file that lists others: a row each, the name in the last column.

    A file with most of the released names in their places is the released one, however it spells the rest.
    """
    names, _ = ade20k()
    if not file.is_file():
        return names
    rows = [line.split("\t") for line in read_text(file).splitlines()[1:] if line.strip()]
    listed = tuple(row[-1].split(",")[0].strip() for row in rows)
    same = sum(a == b for a, b in zip(listed, names, strict=False))
    return names if len(listed) == len(names) and 2 * same > len(names) else listed


DATASETS = {"ade20k": ADE20K}
