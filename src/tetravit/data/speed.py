"""Loading speed of a recipe's training images: by number of workers and by stage."""

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from tetravit.data.build import build_dataset
from tetravit.data.collate import collate
from tetravit.data.config import DataConfig
from tetravit.data.datasets import Dataset
from tetravit.data.decode import file_bytes
from tetravit.data.loader import TrainLoader, make_train_loader
from tetravit.data.prepare import transformed

SAMPLE = 64  # images for timing the stages


@dataclass(frozen=True)
class Speed:
    """Images per second with a number of workers."""

    workers: int
    images_per_s: float


@dataclass(frozen=True)
class Stage:
    """Milliseconds per image in one process."""

    name: str
    ms: float


def worker_counts(cores: int | None = None) -> list[int]:
    """0, 1, 2, 4, ... up to the cores of this process."""
    if cores is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    counts, count = [0], 1
    while count < cores:
        counts.append(count)
        count *= 2
    return [*counts, cores]


def speeds(config: DataConfig, counts: Iterable[int], seconds: float = 5.0) -> Iterable[Speed]:
    """Images per second for each number of workers, after warm-up batches."""
    dataset = build_dataset(config, "train")
    for workers in counts:
        loader = make_train_loader(config.model_copy(update={"workers": workers}), seed=0, dataset=dataset)
        yield Speed(workers, _speed(loader, max(1, workers), seconds))
        loader.close()


def _speed(loader: TrainLoader, warm: int, seconds: float) -> float:
    batches = loader.batches()
    for _ in range(warm):
        next(batches)
    start, images = time.perf_counter(), 0
    while True:
        images += sum(map(len, next(batches)))
        spent = time.perf_counter() - start
        if spent >= seconds:
            return images / spent


def stages(config: DataConfig, count: int = SAMPLE) -> list[Stage]:
    """Time per image of reading, decoding, each augmentation and collating."""
    dataset = build_dataset(config, "train")
    augment = config.augmentation()
    spent: dict[str, float] = {}
    samples = []
    step = max(1, len(dataset) // count)
    torch.manual_seed(0)
    for index in range(0, min(len(dataset), step * count), step):
        read, whole = _timed(partial(_read, dataset, index)), _timed(partial(dataset.__getitem__, index))
        sample = whole[1]
        if read[1]:
            spent["read"] = spent.get("read", 0.0) + read[0]
        spent["decode"] = spent.get("decode", 0.0) + max(0.0, whole[0] - (read[0] if read[1] else 0.0))
        if not isinstance(sample.target, int | None):
            seconds, sample = _timed(partial(transformed, sample, augment))
            spent["augment"] = spent.get("augment", 0.0) + seconds
        else:
            image = sample.image
            for part in augment.steps:
                seconds, image = _timed(partial(_applied, part, image))
                name = type(part).__name__.lower()
                spent[name] = spent.get(name, 0.0) + seconds
            sample = replace(sample, image=image)
        samples.append(sample)
    spent["collate"] = _timed(lambda: collate(samples, range(len(samples)), config.bucket))[0]
    return [Stage(name, 1000 * seconds / len(samples)) for name, seconds in spent.items()]


def _read(dataset: Dataset, index: int) -> bool:
    """Bytes of an image, and whether they are those of a file."""
    source = getattr(dataset, "source", None)
    if source is not None:
        source.read(index)
        return True
    try:
        path = dataset.path(index)
    except ValueError:
        return False
    file_bytes(path)
    return True


def _applied(step: Any, image: Any) -> Any:
    return step(image)


def _timed(function: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result
