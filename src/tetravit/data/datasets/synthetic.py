"""Synthetic images for dry runs, benchmarks and tests: one pattern per class, with noise.

Image i of a split is always the same.
"""

import torch
from torch.nn import functional as F

from tetravit.data.datasets.base import Dataset, Root, Split, check_split, no_root
from tetravit.structures import Sample

CELLS = 6  # a class pattern is a grid of CELLS x CELLS colours


class Synthetic(Dataset):
    """Noisy colour patterns, uint8 (3, image_size, image_size).

    Args:
        root: None; the set has no folder.
        split: "train" or "val": same patterns, different noise.
        num_classes: number of patterns.
        size: number of images; image i has class i % num_classes.
        image_size: side in pixels.

    Raises:
        ValueError: for a root, an unknown split, fewer than two classes, or no image.
    """

    def __init__(
        self,
        root: Root,
        split: Split,
        *,
        num_classes: int = 10,
        size: int = 1000,
        image_size: int = 224,
    ) -> None:
        check_split(split)
        no_root("synthetic", root)
        if num_classes < 2 or size < 1 or image_size < 1:
            raise ValueError(
                "synthetic takes num_classes from 2, size and image_size from 1;"
                f" got num_classes={num_classes}, size={size}, image_size={image_size}."
            )
        self.split = split
        self.size = size
        self.image_size = image_size
        self.num_classes = num_classes
        self.class_names = tuple(f"pattern {i}" for i in range(num_classes))

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.size:
            raise IndexError(index)
        label = index % self.num_classes
        pattern = torch.rand(1, 3, CELLS, CELLS, generator=torch.Generator().manual_seed(label))
        image = F.interpolate(pattern, size=(self.image_size, self.image_size), mode="nearest")[0] * 160
        noise = torch.Generator().manual_seed(2 * index + (self.split == "val") + 1_000_003)
        image = image + torch.randint(0, 96, image.shape, generator=noise)
        return Sample(image.to(torch.uint8), label, f"synthetic/{self.split}/{index}")


DATASETS = {"synthetic": Synthetic}
