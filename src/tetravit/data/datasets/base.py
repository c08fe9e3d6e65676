"""What every data set of labelled images offers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from tetravit.structures import Kind, Sample

Split = Literal["train", "val"]


class Dataset(Protocol):
    """Images by number. Built as `DATASETS[name](root, split, **options)`.

    A set of label maps or objects says so in a class attribute `kind` ("segment", "detect"); see `kind_of`.
    """

    @property
    def num_classes(self) -> int: ...

    @property
    def class_names(self) -> Sequence[str]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample:
        """Sample with a uint8 image (3, Hi, Wi)."""
        ...


def kind_of(dataset: object) -> Kind:
    """What a data set, or its row of the menu, knows of an image; "classify" where it says nothing."""
    kind: Kind = getattr(dataset, "kind", "classify")
    return kind


def check_split(split: str) -> None:
    """Raises: ValueError if `split` is neither "train" nor "val"."""
    if split not in ("train", "val"):
        raise ValueError(f"split takes one of train, val; got {split!r}.")


def no_root(name: str, root: Path | None) -> None:
    """Raises: ValueError if a folder is given to a set that has none."""
    if root is not None:
        raise ValueError(f"The data set {name!r} needs no root; got {str(root)!r}.")


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
