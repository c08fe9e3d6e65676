"""A folder of images and label maps of one's own.

ROOT/classes.txt                    a class per line, in the order of their numbers
ROOT/images/{train,val}/**/NAME.jpg
ROOT/labels/{train,val}/**/NAME.png a number per pixel; 255: no class
"""

from tetravit.data.datasets.base import Root, Split, check_split, local_root
from tetravit.data.label_maps import LabelMaps, Shifted, pairs_of


class LabelFolder(LabelMaps):
    """A folder of your own: images, label maps and the names of their classes.

    Args:
        root: the folder, see above.
        split: "train" or "val".
        first: the number that the first class has in the files; smaller ones are no class.

    Raises:
        ValueError: if the folder lacks something, or `first` is out of range.
    """

    def __init__(self, root: Root, split: Split, *, first: int = 0) -> None:
        check_split(split)
        root = local_root("label_folder", root)
        if not 0 <= first <= 254:
            raise ValueError(f"first is the number of the first class, 0 to 254; got {first!r}.")
        file = root / "classes.txt"
        if not file.is_file():
            raise ValueError(f"There is no file {str(file)!r}; it names the classes, one per line.")
        names = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        if not 1 <= len(names) <= 255:
            raise ValueError(f"{str(file)!r} names 1 to 255 classes, one per line; got {len(names)}.")
        pairs = pairs_of(root / "images" / split, root / "labels" / split)
        super().__init__(pairs, names, root=root, convert=Shifted(first) if first else None)


DATASETS = {"label_folder": LabelFolder}
