"""The interface of a data set."""

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
    """Metadata of a data set, available before any image is read.

    kind: type of the targets: a class, a label map, objects, or none.
    count: number of images; 0: unknown. channels: of the images.
    needs_root: whether it needs a folder from the user.
    in_memory: whether decoding is free, so that workers only add overhead.
    problems: what was left out, one line per cause.
    wide: (N,) bool, whether each image is wider than high; None: unknown before images are read.
    labels: (N,) int, the class of each image; None: not single-label classification, or unknown.
    counts: (num_classes,) int, images or objects per class; None: not counted.
    most_objects: maximum number of objects in an image; 0: not a detection set.
    masks: whether objects have masks; also True if unknown.
    shards: images per shard, in image order; None: no shards.
    strata: (N,) int, strata that dividing the set preserves; None: none.
    classes: indices into the 1000 classes of ImageNet; None: the classes of the set are those of the model.
    multi_label: targets are (K,) float, 1 for each class of an image, else 0.
    several: targets are tuples of classes, each of them correct.
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
    """A map-style data set. A subclass is built as `DATASETS[name](root, split, **options)`.

    A subclass with configurable locations also takes `parts: Parts | None` and reads the split from
    `parts.place(split)`; None means `Parts(root)`. `split` then controls the selection of images: a training set may
    leave images out, validation and test sets use all.

    A subclass sets `num_classes` and `class_names`, and defines `__len__` and `__getitem__`. Facts that are fixed for
    the class are class attributes; facts from the files are added in `info`.
    """

    kind: ClassVar[DataKind] = "classify"
    needs_root: ClassVar[bool] = False
    in_memory: ClassVar[bool] = False
    channels: int = 3  # of the images; file-based sets decode this many

    num_classes: int
    class_names: Sequence[str]
    labels: np.ndarray | None = None  # (N,) the class of each image, of a set of labelled images

    @property
    def info(self) -> DatasetInfo:
        """Metadata of this set; subclasses replace further fields."""
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
        """A stable name of an image, relative to its set and without reading it; used to divide sets."""
        return str(index)

    def path(self, index: int) -> str:
        """The path of an image's file.

        Raises:
            ValueError: if the images of the set are not files.
        """
        raise ValueError(f"The images of {type(self).__name__} are no files of their own.")

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> Sample:
        """Sample with a uint8 image (C, Hi, Wi)."""
        raise NotImplementedError


def kind_of(dataset: Any) -> DataKind:
    """Attributes of a row of the menu, a subclass of `Dataset`."""
    kind: DataKind = dataset.kind
    return kind


def check_split(split: str, known: Sequence[Split] = ("train", "val")) -> None:
    """Raises: ValueError if `split` is unknown."""
    if split not in known:
        raise ValueError(f"split takes one of {', '.join(known)}; got {split!r}.")


def no_root(name: str, root: Root) -> None:
    """Raises: ValueError if a folder is given to a set that needs none."""
    if root is not None:
        raise ValueError(
            f"The data set {name!r} needs no root; got {str(root)!r}. data.name names a set that reads folders."
        )


def local_root(name: str, root: Root) -> Path:
    """The folder of a set that reads local files.

    Raises:
        ValueError: if it is missing or not local.
    """
    if root is None:
        raise ValueError(f"The data set {name!r} needs its root.")
    if not is_local(os.fspath(root)):
        raise ValueError(f"The data set {name!r} is read from local folders; got data.root={str(root)!r}.")
    return Path(root)


def keep_fraction(labels: np.ndarray, fraction: float) -> np.ndarray:
    """Indices of the first `fraction` of each class, at least one image each, in order (ConViT's subsets).

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
