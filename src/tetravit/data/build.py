"""A section [data] -> a data set."""

import inspect
import os
from typing import Literal

from tetravit.data.config import DataConfig
from tetravit.data.datasets import DATASETS, Dataset
from tetravit.registry import pick, suggestion

MAX_WORKERS = 8


def build_dataset(config: DataConfig, split: Literal["train", "val"]) -> Dataset:
    """The data set that a config names.

    Raises:
        ValueError: for an unknown name or option, or a root without the images it should hold.
    """
    row = pick(DATASETS, config.name, "data set")
    known = [p for p in inspect.signature(row).parameters if p not in ("root", "split")]
    for option in config.options:
        if option not in known:
            raise ValueError(
                f"The data set {config.name!r} has no option {option!r}.{suggestion(option, known)}"
            )
    dataset: Dataset = row(config.root, split, **config.options)
    return dataset


def resolve_workers(workers: int | Literal["auto"], dataset: Dataset) -> int:
    """`auto`: none for a set in memory; else this rank's cores, one kept back, at most MAX_WORKERS."""
    if workers != "auto":
        return workers
    if dataset.info.in_memory:
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(MAX_WORKERS, cores // ranks_here - 1))
