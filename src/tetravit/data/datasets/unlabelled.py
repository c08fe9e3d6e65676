"""Images without labels, at any depth: ROOT/train/... if that folder exists, else ROOT/...."""

import os
from dataclasses import replace

from tetravit.data.datasets.base import Dataset, DatasetInfo, Root, Split, check_split
from tetravit.data.decode import decode
from tetravit.data.files import images_below
from tetravit.data.parts import PARTS, Parts, find_part, part_folder
from tetravit.data.problems import Problems
from tetravit.data.storage import storage_of
from tetravit.structures import Sample

LAYOUT = "ROOT/train/IMAGE and ROOT/val/IMAGE, or ROOT/IMAGE to train on"


class Unlabelled(Dataset):
    """Unlabelled images, in the order of their paths; targets are None.

    Args:
        root: the folder.
        split: "train", "val" or "test", a folder below the root; without a train folder, all images are "train".
        parts: locations of the splits, each one or more folders; None: below the root.

        channels: of the images; other than 1 or 3, arrays (.npy) count as images too.

    Raises:
        ValueError: if the folder does not exist, or contains no image.
    """

    kind = "unlabelled"
    needs_root = True

    def __init__(self, root: Root, split: Split, *, parts: Parts | None = None, channels: int = 3) -> None:
        check_split(split, PARTS)
        root = None if root is None else os.fspath(root)
        place = (parts or Parts(root)).place(split)
        folders = place.given
        if not folders:
            if root is None:
                raise ValueError("The data set 'unlabelled' needs its root.")
            there = storage_of(root).exists(root)
            alone = there and place.part == "train" and find_part(root, "train") is None
            folders = (root if alone else part_folder(root, place.part, LAYOUT),)
        self.channels, self.problems = channels, Problems()
        self.files: list[tuple[str, str]] = []  # folder, relative path
        for folder in folders:
            if not storage_of(folder).exists(folder):
                raise ValueError(f"There is no folder {folder!r}.")
            self.files += [(folder, path) for path in images_below(folder, self.problems, channels=channels)]
        if not self.files:
            lines = "; ".join(self.problems.lines()) or "it is empty"
            raise ValueError(f"There are no images in {folders[0]!r}: {lines}.")
        self.num_classes, self.class_names = 0, ()

    @property
    def info(self) -> DatasetInfo:
        return replace(super().info, problems=tuple(self.problems.lines()))

    def key(self, index: int) -> str:
        return self.files[index][1]

    def __len__(self) -> int:
        return len(self.files)

    def path(self, index: int) -> str:
        folder, path = self.files[index]
        return storage_of(folder).join(folder, path)

    def __getitem__(self, index: int) -> Sample:
        path = self.path(index)
        return Sample(decode(path, layout="decoded", channels=self.channels), None, path)


DATASETS = {"unlabelled": Unlabelled}
