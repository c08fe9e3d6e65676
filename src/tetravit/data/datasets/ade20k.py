"""ADE20K as released for scene parsing (Zhou et al. 2017): 20,210 images to train, 2,000 to validate, 150 classes.

ROOT, or ROOT/ADEChallengeData2016, holds images/ and annotations/, each with training/ and validation/. In the
files 0 is no class and classes count from 1. Where ROOT/objectInfo150.txt lists others than the 150 released classes,
these are the classes: that is how sets of one's own come in this layout.
"""

from pathlib import Path

from tetravit.data.datasets.base import Root, Split, check_split, local_root
from tetravit.data.label_maps import LabelMaps, Shifted, pairs_of
from tetravit.data.palettes import ade20k

PARTS = {"train": "training", "val": "validation"}
ARCHIVE = "ADEChallengeData2016"


class ADE20K(LabelMaps):
    """ADE20K: photographs of scenes, 150 classes of pixels.

    Labels are uint8, 0 to 149, and 255 for pixels without a class.

    Args:
        root: the folder, see above.
        split: "train" or "val".

    Raises:
        ValueError: if folders or label maps are missing.
    """

    def __init__(self, root: Root, split: Split) -> None:
        check_split(split)
        root = local_root("ade20k", root)
        root = root / ARCHIVE if (root / ARCHIVE).is_dir() else root
        pairs = pairs_of(root / "images" / PARTS[split], root / "annotations" / PARTS[split])
        super().__init__(pairs, _classes(root / "objectInfo150.txt"), root=root, convert=Shifted(1))


def _classes(file: Path) -> tuple[str, ...]:
    """The released 150, or those of a file that lists others: a row each, the name in the last column.

    A file with most of the released names in their places is the released one, however it spells the rest.
    """
    names, _ = ade20k()
    if not file.is_file():
        return names
    rows = [line.split("\t") for line in file.read_text(encoding="utf-8").splitlines()[1:] if line.strip()]
    listed = tuple(row[-1].split(",")[0].strip() for row in rows)
    same = sum(a == b for a, b in zip(listed, names, strict=False))
    return names if len(listed) == len(names) and 2 * same > len(names) else listed


DATASETS = {"ade20k": ADE20K}
