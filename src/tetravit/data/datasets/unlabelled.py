"""A folder of images without labels, at any depth: ROOT/train/... where there is such a folder, else ROOT/...."""

import os
from dataclasses import replace

from tetravit.data.datasets.base import Dataset, DatasetInfo, Root, Split, check_split
from tetravit.data.decode import decode
from tetravit.data.files import images_below
from tetravit.data.problems import Problems
from tetravit.data.storage import storage_of
from tetravit.structures import Sample


class Unlabelled(Dataset):
    """Images alone, in the order of their paths; targets are None.

    Args:
        root: the folder.
        split: "train" or "val", a folder below the root; where there is no such folder, all images train.

    Raises:
        ValueError: if there is no folder, or no image below it.
    """

    kind = "unlabelled"
    needs_root = True

    def __init__(self, root: Root, split: Split) -> None:
        check_split(split)
        if root is None:
            raise ValueError("The data set 'unlabelled' needs its root.")
        root = os.fspath(root)
        storage = storage_of(root)
        if not storage.exists(root):
            raise ValueError(f"There is no folder {root!r}.")
        part = storage.join(root, split)
        if storage.exists(part):
            self.folder = part
        elif split == "train":
            self.folder = root
        else:
            raise ValueError(f"There is no folder {split!r} in {root!r}.")
        self.problems = Problems()
        self.names = images_below(self.folder, self.problems)
        if not self.names:
            lines = "; ".join(self.problems.lines()) or "it is empty"
            raise ValueError(f"There are no images in {self.folder!r}: {lines}.")
        self.num_classes, self.class_names = 0, ()
        self._storage = storage

    @property
    def info(self) -> DatasetInfo:
        return replace(super().info, problems=tuple(self.problems.lines()))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        path = self._storage.join(self.folder, self.names[index])
        return Sample(decode(path, layout="decoded"), None, path)


DATASETS = {"unlabelled": Unlabelled}
