"""What every data set offers."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from tetravit.data.parts import Part
from tetravit.data.storage import is_local
from tetravit.structures import DataKind, Sample

Split = Part
Root = str | os.PathLike[str] | None


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a data set before any image is read.

    kind: what belongs to an image: a class, a label map, objects, or nothing.
    count: images of the set; 0: not known. channels: of its images.
    needs_root: whether it lies in a folder of the user's.
    in_memory: whether decoding is free, so that worker processes only add overhead.
    problems: what was left out, one line per cause.
    wide: (N,) bool, which images are wider than high; None: not known before they are read.
    labels: (N,) int, the class of each image; None: not a set of one class per image, or not known.
    counts: (num_classes,) int, how many images, or objects, each class has; None: not counted.
    most_objects: in one image; 0: not a set of objects.
    masks: whether objects have masks; True too where nothing is known.
    shards: images of each shard, in the order of the images; None: the set has no shards.
    strata: (N,) int, in whose proportions a set is divided; None: there are none.
    classes: which of the 1000 classes of ImageNet these are; None: the set's classes are the model's own.
    multi_label: whether a target is (K,) float, 1 for each class of an image and 0 for the others.
    several: whether a target is a tuple of classes, each of them correct.
    """

    kind: DataKind
    num_classes: int
    class_names: tuple[str, ...]
    channels: int = 3
    count: int = 0
    needs_root: bool = False
    in_memory: bool = False
    problems: tuple[str, ...] = ()
    wide: np.ndarray | None = field(default=None, compare=False, repr=False)
    labels: np.ndarray | None = field(default=None, compare=False, repr=False)
    counts: np.ndarray | None = field(default=None, compare=False, repr=False)
    most_objects: int = 0
    masks: bool = True
    strata: np.ndarray | None = field(default=None, compare=False, repr=False)
    shards: tuple[int, ...] | None = field(default=None, compare=False, repr=False)
    classes: tuple[int, ...] | None = None
    several: bool = False
    multi_label: bool = False


class Dataset:
    """Images by number. A subclass is built as `DATASETS[name](root, split, **options)`.

    One whose parts may lie elsewhere than in their usual folders takes `parts: Parts | None` too, and reads the part
    from `parts.place(split)`; None stands for `Parts(root)`. `split` then says how images are chosen: all of them
    are validated and tested on, while a set to train on may leave some out.

    A subclass sets `num_classes` and `class_names`, and defines `__len__` and `__getitem__`. What its name alone
    says stands in class attributes; what depends on the files is added in `info`.
    """

    kind: ClassVar[DataKind] = "classify"
    needs_root: ClassVar[bool] = False
    in_memory: ClassVar[bool] = False
    channels: int = 3  # of the images; sets of files decode this many

    num_classes: int
    class_names: Sequence[str]
    labels: np.ndarray | None = None  # (N,) the class of each image, of a set of labelled images

    @property
    def info(self) -> DatasetInfo:
        """What is known of this set; a subclass with more facts replaces fields."""
        labels = self.labels
        counts = None if labels is None else np.bincount(labels, minlength=self.num_classes)
        return DatasetInfo(
            kind=self.kind,
            num_classes=self.num_classes,
            class_names=tuple(map(str, self.class_names)),
            count=len(self),
            channels=self.channels,
            needs_root=self.needs_root,
            in_memory=self.in_memory,
            labels=labels,
            counts=counts,
            strata=labels,
        )

    def key(self, index: int) -> str:
        """What an image is called relative to its set, without reading it: a set is divided by it."""
        return str(index)

    def path(self, index: int) -> str:
        """The path of an image's file.

        Raises:
            ValueError: if the images of the set are no files.
        """
        raise ValueError(f"The images of {type(self).__name__} are no files of their own.")

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> Sample:
        """Sample with a uint8 image (C, Hi, Wi)."""
        raise NotImplementedError


def kind_of(dataset: Any) -> DataKind:
    """What a row of the menu, a class derived from `Dataset`, holds beside its images."""
    kind: DataKind = dataset.kind
    return kind


def check_split(split: str, known: Sequence[Split] = ("train", "val")) -> None:
    """Raises: ValueError if `split` is no part that a set has."""
    if split not in known:
        raise ValueError(f"split takes one of {', '.join(known)}; got {split!r}.")


def no_root(name: str, root: Root) -> None:
    """Raises: ValueError if a folder is given to a set that has none."""
    if root is not None:
        raise ValueError(f"The data set {name!r} needs no root; got {str(root)!r}.")


def local_root(name: str, root: Root) -> Path:
    """The folder of a set whose files are read by their local paths.

    Raises:
        ValueError: if there is none, or it lies elsewhere.
    """
    if root is None:
        raise ValueError(f"The data set {name!r} needs its root.")
    if not is_local(os.fspath(root)):
        raise ValueError(f"The data set {name!r} is read from local folders; got data.root={str(root)!r}.")
    return Path(root)


def keep_fraction(labels: np.ndarray, fraction: float) -> np.ndarray:
    """Positions of the first `fraction` of each class, at least one image each, in order (ConViT's subsets).

    Raises:
        ValueError: if `fraction` is not in (0, 1].
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction is above 0 and at most 1; got {fraction!r}.")
    if fraction == 1:
        return np.arange(len(labels))
    order = np.argsort(labels, kind="stable")
    counts = np.bincount(labels)
    starts = np.cumsum(counts) - counts
    kept = [order[s : s + max(1, int(c * fraction + 1e-9))] for s, c in zip(starts, counts, strict=True)]
    return np.sort(np.concatenate(kept))
