"""Build a data set from the section [data]."""

import inspect
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tetravit.data import imagenet
from tetravit.data.config import DataConfig
from tetravit.data.datasets import DATASETS, Dataset, kind_of
from tetravit.data.guess import TELLING, fits
from tetravit.data.parts import PARTS, Part, divided
from tetravit.data.storage import is_local
from tetravit.data.subset import Renumbered, Subset
from tetravit.heads import HEADS
from tetravit.registry import pick, suggestion


def build_dataset(config: DataConfig, split: Part, *, class_names: Sequence[str] = ()) -> Dataset:
    """Build one split of the configured data set.

    class_names: classes of a model; labels follow their order, and the set may lack some. None: the set's own
    classes.

    Raises:
        ValueError: for an unknown name or option, a root without the expected images, or classes that the model does
            not have.
    """
    row = pick(DATASETS, config.name, "data set")
    known = inspect.signature(row).parameters
    options = [p for p in known if p not in ("root", "split", "parts", "channels")]
    for option in config.options:
        if option not in options:
            raise ValueError(
                f"The data set {config.name!r} has no option {option!r}.{suggestion(option, options)}"
            )
    parts, given = config.parts, dict[str, Any]()
    if "parts" in known:
        given["parts"] = parts
    elif named := [part for part in PARTS if getattr(parts, part)]:
        raise ValueError(f"The data set {config.name!r} has its own parts; it takes no data.{named[0]}.")

    if "channels" in known:
        given["channels"] = config.channels or 3

    def built(split: Part) -> Dataset:
        try:
            dataset: Dataset = row(config.root, split, **given, **config.options)
        except ValueError as error:
            if type(error) is not ValueError or not (hint := _other_layout(config)):
                raise
            raise ValueError(f"{error}{hint}") from None
        dataset.channels = config.channels or 3
        return dataset

    dataset = built(split if "parts" in known or not parts.divides(split) else "train")
    if parts.divides(split):
        whole = dataset if split == "val" else built("val" if "parts" in known else "train")
        names = [whole.key(i) for i in range(len(whole))]
        held = divided(names, whole.info.strata, share=parts.split, by=parts.by, seed=parts.seed)
        validates = {name for name, out in zip(names, held, strict=True) if out}
        mine = [(dataset.key(i) in validates) == (split == "val") for i in range(len(dataset))]
        dataset = Subset(dataset, np.flatnonzero(mine))
    return as_classes(dataset, class_names)


def _other_layout(config: DataConfig) -> str:
    """A hint for a root with the layout of another data set; empty for an unknown layout."""
    files = config.name in (*TELLING, "image_folder", "unlabelled")
    if config.root is None or not is_local(config.root):
        return ""
    if not files and DATASETS[config.name].needs_root:  # a published set
        return ""
    root = Path(config.root)
    try:
        fitting = fits(root)
    except OSError:  # there is no such folder
        return ""
    if not fitting and any(root.glob("*.csv")):
        fitting = ["image_list"]
    if not fitting or config.name in fitting:
        return ""
    return f" The folder has the layout of data.name={fitting[0]}, a set to {kind_of(DATASETS[fitting[0]])}."


def for_head(config: DataConfig, has_masks: bool) -> DataConfig:
    """The section with masks skipped if the head predicts none: masks cost time, and some objects have none."""
    row = DATASETS.get(config.name)
    if (
        has_masks
        or row is None
        or "masks" not in inspect.signature(row).parameters
        or "masks" in config.options
    ):
        return config
    return config.model_copy(update={"options": {**config.options, "masks": "skip"}})


def as_trained(config: DataConfig, head: str | None) -> DataConfig:
    """The section adapted to the head `head`; None: the default head of a task. See `for_head`."""
    row = HEADS.get(head or "")
    return for_head(config, has_masks=row is None or row.kind != "detect" or row.has_masks)


def as_classes(dataset: Dataset, class_names: Sequence[str]) -> Dataset:
    """The set with labels in the order of `class_names`; unchanged if that is empty.

    Raises:
        ValueError: if the set has a class outside `class_names`.
    """
    own = imagenet.readable(map(str, dataset.class_names))
    wanted = imagenet.readable(class_names)
    if not wanted or own == wanted or dataset.info.classes is not None:
        return dataset
    return Renumbered(dataset, wanted, own)


def resolve_workers(workers: int | Literal["auto"], dataset: Dataset) -> int:
    """`auto`: 0 for a set in memory; else the cores of this rank minus one."""
    if workers != "auto":
        return workers
    if dataset.info.in_memory:
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, cores // ranks_here - 1)
