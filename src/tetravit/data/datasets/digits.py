"""1,797 handwritten digits, 8 x 8 pixels, included in the package: real images without a download.

The test part of "Optical Recognition of Handwritten Digits" (E. Alpaydin, C. Kaynak, 1998, UCI Machine
Learning Repository, archive.ics.uci.edu/dataset/80, CC BY 4.0), in the order in which scikit-learn ships it. Values
0..16 are stored as value * 255 / 16. The scans are one PNG sheet with 45 per row; labels are in a text file.

Of the scans of a class, in order, the third of every five is in "val": 1,438 train, 359 val. Both splits contain
digits of the same 13 writers, so the score measures new scans, not new writers.
"""

from importlib.resources import files

import numpy as np
import torch

from tetravit.data.datasets.base import Dataset, Root, Split, check_split, keep_fraction, no_root
from tetravit.data.decode import decode
from tetravit.structures import Sample

SIDE = 8
PER_ROW = 45


class Digits(Dataset):
    """The embedded digits; images (3, 8, 8).

    Args:
        root: None; the set has no folder.
        split: "train" or "val".
        fraction: keep the first share of each class, in (0, 1]; the validation part is always whole.

    Raises:
        ValueError: for a root, an unknown split or a fraction outside (0, 1].
    """

    in_memory = True  # decoding is free: workers would only add overhead
    num_classes = 10
    class_names = tuple("0123456789")

    def __init__(self, root: Root, split: Split, *, fraction: float = 1.0) -> None:
        check_split(split)
        no_root("digits", root)
        images, labels = read_all()
        self.split = split
        kept = np.flatnonzero(_held_out(labels) == (split == "val"))
        if split == "train":
            kept = kept[keep_fraction(labels[kept], fraction)]
        self.numbers = kept  # position of each scan in the whole set
        self.images = torch.from_numpy(images[kept])[:, None].repeat(1, 3, 1, 1)  # (n, 3, 8, 8)
        self.labels: np.ndarray = labels[kept]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Sample:
        name = f"digits/{self.split}/{self.numbers[index]}"
        return Sample(self.images[index], int(self.labels[index]), name)


def read_all() -> tuple[np.ndarray, np.ndarray]:
    """All scans, uint8 (1797, 8, 8), and their labels, int64 (1797,)."""
    folder = files(__package__)
    labels = np.array([int(c) for c in (folder / "digits.txt").read_text().split()[0]])
    sheet = decode((folder / "digits.png").read_bytes(), name="digits.png")[0].numpy()  # (320, 360)
    tiles = sheet.reshape(-1, SIDE, PER_ROW, SIDE).swapaxes(1, 2).reshape(-1, SIDE, SIDE)
    return tiles[: len(labels)], labels


def _held_out(labels: np.ndarray) -> np.ndarray:
    """True where a scan is the third, eighth, thirteenth, ... of its class."""
    rank = np.zeros(len(labels), dtype=np.int64)
    for label in range(10):
        mine = labels == label
        rank[mine] = np.arange(mine.sum())
    return rank % 5 == 2


DATASETS = {"digits": Digits}
