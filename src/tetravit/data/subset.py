"""Subsets of a data set, and a data set with remapped classes."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tetravit.data.datasets.base import Dataset, DatasetInfo
from tetravit.data.files import same_name, some
from tetravit.structures import Sample, Target

IGNORE = 255  # label of ignored pixels


class Subset(Dataset):
    """The images of a set at some indices, in that order."""

    def __init__(self, dataset: Dataset, positions: np.ndarray) -> None:
        self.dataset, self.positions = dataset, positions
        self.num_classes, self.class_names = dataset.num_classes, dataset.class_names
        whole = dataset.info
        rows: dict[str, Any] = {"count": len(positions)}
        for field in ("wide", "labels", "strata"):
            values = getattr(whole, field)
            rows[field] = None if values is None else values[positions]
        if whole.shards is not None:
            ends = np.searchsorted(positions, np.cumsum(whole.shards))
            rows["shards"] = tuple(np.diff(ends, prepend=0).tolist())
        self.labels = rows["labels"]
        if self.labels is not None:
            rows["counts"] = np.bincount(self.labels, minlength=self.num_classes)
        self._info = replace(whole, **rows)

    @property
    def info(self) -> DatasetInfo:
        return self._info

    def key(self, index: int) -> str:
        return self.dataset.key(int(self.positions[index]))

    def path(self, index: int) -> str:
        return self.dataset.path(int(self.positions[index]))

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.dataset[int(self.positions[index])]


class Renumbered(Dataset):
    """A data set with labels remapped to `class_names`, a longer or reordered list.

    Args:
        dataset: the set.
        class_names: the classes of the result.
        own: class names of the set, spelled as in `class_names`; None: unchanged.

    Raises:
        ValueError: if the set has classes that are not in `class_names`.
    """

    def __init__(
        self, dataset: Dataset, class_names: Sequence[str], own: Sequence[str] | None = None
    ) -> None:
        own = tuple(same_name(str(name)) for name in (dataset.class_names if own is None else own))
        numbers = {same_name(name): i for i, name in enumerate(class_names)}
        unknown = [name for name in own if name not in numbers]
        if unknown:
            raise ValueError(
                f"{len(unknown)} of the {len(own)} classes of the data set are not among the"
                f" {len(class_names)} of the model: {some(unknown)}; the model has {some(class_names)}."
            )
        self.dataset, self.class_names, self.num_classes = dataset, tuple(class_names), len(class_names)
        self.table = np.array([numbers[name] for name in own], dtype=np.int64)
        info = dataset.info
        counts = None
        if info.counts is not None:
            counts = np.zeros(self.num_classes, dtype=np.int64)
            counts[self.table] = info.counts
        self.labels = None if info.labels is None else self.table[info.labels]
        self._info = replace(
            info,
            num_classes=self.num_classes,
            class_names=self.class_names,
            labels=self.labels,
            strata=self.labels if info.labels is not None else info.strata,
            counts=counts,
        )

    @property
    def info(self) -> DatasetInfo:
        return self._info

    def path(self, index: int) -> str:
        return self.dataset.path(index)

    def key(self, index: int) -> str:
        return self.dataset.key(index)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        sample = self.dataset[index]
        return replace(sample, target=self._target(sample.target))

    def _target(self, target: Any) -> Any:
        if isinstance(target, int):
            return int(self.table[target])
        if isinstance(target, tuple):
            return tuple(int(self.table[label]) for label in target)
        table = torch.from_numpy(self.table)
        if isinstance(target, Target):
            return replace(target, labels=table[target.labels])
        if isinstance(target, Tensor) and target.ndim == 1:  # (classes,) several labels
            return target.new_zeros(self.num_classes).index_copy_(0, table, target)
        if isinstance(target, Tensor):  # (Hi, Wi); numbers that are no class stay as they are
            known = target < len(table)
            return torch.where(known, table[target.long().clamp(max=len(table) - 1)].to(target.dtype), target)
        return target
