"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): 32 x 32 pixels, read by torchvision from the authors' archives.

ROOT contains `cifar-10-batches-py` or `cifar-100-python` as unpacked; torchvision verifies their checksums first. The
test images are "val".
"""

from typing import ClassVar, Literal

import numpy as np
import torch

from tetravit.data.datasets.base import Dataset, Root, Split, check_split, keep_fraction, local_root
from tetravit.structures import Sample

SOURCES = {"cifar10": "CIFAR10", "cifar100": "CIFAR100"}  # class names in torchvision


class Cifar(Dataset):
    """Images (3, 32, 32), all in memory.

    Args:
        root: the folder that contains the unpacked archive.
        split: "train" or "val".
        fraction: keep the first share of each class, in (0, 1]; does not apply to "val".

    Raises:
        ValueError: if the archive is missing or damaged.
    """

    name: ClassVar[Literal["cifar10", "cifar100"]]
    in_memory = True
    needs_root = True

    def __init__(self, root: Root, split: Split, *, fraction: float = 1.0) -> None:
        from torchvision import datasets  # slow import

        check_split(split)
        root = local_root(self.name, root)
        source = getattr(datasets, SOURCES[self.name])
        try:
            cifar = source(root, train=split == "train", download=False)
        except RuntimeError:
            raise ValueError(
                f"{str(root)!r} does not hold {source.base_folder!r} as published; unpack the archive there."
            ) from None
        labels = np.asarray(cifar.targets)
        kept = keep_fraction(labels, fraction if split == "train" else 1.0)
        self.split, self.numbers = split, kept
        self.images = torch.from_numpy(cifar.data[kept]).permute(0, 3, 1, 2)  # (n, 3, 32, 32)
        self.labels: np.ndarray = labels[kept]
        self.class_names = tuple(cifar.classes)
        self.num_classes = len(self.class_names)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Sample:
        name = f"{self.name}/{self.split}/{self.numbers[index]}"
        return Sample(self.images[index].contiguous(), int(self.labels[index]), name)


class Cifar10(Cifar):
    """CIFAR-10."""

    name = "cifar10"


class Cifar100(Cifar):
    """CIFAR-100."""

    name = "cifar100"


DATASETS = {"cifar10": Cifar10, "cifar100": Cifar100}
