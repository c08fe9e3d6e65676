"""Weights + data set -> scores, by the same `Task.score` that a training run is judged with."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from tetravit.data.loader import DataConfig, EvalLoader, make_eval_loader
from tetravit.engine.distributed import pick_device
from tetravit.models import Classifier, load
from tetravit.recipe import loads
from tetravit.structures import Batch, Preprocess
from tetravit.tasks import TASKS
from tetravit.weights.fileformat import is_ours, read_header

Split = Literal["train", "val"]

# What weights without a recipe of their own are scored on.
IMAGENET = """
epochs = 1
task.name = "classify"
model.name = "deit_tiny"
data.name = "imagenet"
data.batch_size = 64
"""


@dataclass(frozen=True)
class Result:
    """One row of a table of results.

    scores: by name, shares in 0..1. seconds: with the reading of the images. bad: images that could not be read
    and were passed over, with their causes. findings: what a report draws, as the task leaves it.
    """

    weights: str
    data: str
    split: str
    images: int
    scores: dict[str, float]
    seconds: float
    device: str
    bad: dict[str, str] = field(default_factory=dict)
    findings: dict[str, Any] = field(default_factory=dict)

    @property
    def images_per_s(self) -> float:
        return self.images / self.seconds


def score(
    model: nn.Module,
    loader: EvalLoader,
    *,
    weights: str,
    data: str,
    split: Split = "val",
    task: str = "classify",
    device: torch.device | str = "cpu",
    on_batch: Callable[[int], object] = lambda count: None,
) -> Result:
    """Put every image of a loader to a model, in float32.

    Args:
        model: what the task calls.
        loader: the images, prepared for the model.
        weights, data, split: what to call them in the row.
        task: the name of the task whose scores are wanted.
        device: where to compute.
        on_batch: told the number of images before each batch.

    Raises:
        ValueError: if the set is empty, or holds something else than the task reads.
    """
    row = TASKS[task]
    built = row(model, row.Config(name=task), num_classes=loader.dataset.num_classes)  # type: ignore[call-arg]
    judge = built.to(device).eval()
    start = time.perf_counter()
    with torch.inference_mode():
        scores = judge.score(_watched(loader, on_batch))
    return Result(
        weights=weights,
        data=data,
        split=split,
        images=loader.total - len(loader.bad),
        scores=scores,
        seconds=time.perf_counter() - start,
        device=str(device),
        bad=dict(loader.bad),
        findings=judge.findings,
    )


def evaluate(
    source: str | Path,
    overrides: Sequence[str] = (),
    *,
    split: Split = "val",
    device: str = "auto",
    on_batch: Callable[[int], object] = lambda count: None,
) -> Result:
    """Score trained weights on the data of their own run, or on other data.

    Args:
        source: what `tetravit.load` takes: a weights file, a run folder, a published name.
        overrides: changes to the recipe that the weights carry ("data.root=/images"). Weights without one are
            scored on ImageNet.
        split: which part of the data.
        device: auto, cpu, cuda, cuda:N or mps.
        on_batch: told the number of images before each batch.

    Raises:
        ValueError: if the weights or the data cannot be had, or their classes differ.
    """
    where = pick_device(device)
    model = load(source)
    recipe = loads(_recipe_text(source) or IMAGENET, overrides, name=f"The recipe in {source}")
    loader = open_data(
        recipe.data, _input(model, recipe.data, overrides), class_names=model.class_names, split=split
    )
    return score(
        model,
        loader,
        weights=str(source),
        data=recipe.data.name,
        split=split,
        task=recipe.task.name,
        device=where,
        on_batch=on_batch,
    )


def open_data(
    config: DataConfig, preprocess: Preprocess, *, class_names: Sequence[str] = (), split: Split = "val"
) -> EvalLoader:
    """The images of a data section, prepared for some weights.

    Raises:
        ValueError: if the data cannot be had, or its classes are not `class_names` in that order.
    """
    loader = make_eval_loader(config, split=split, preprocess=preprocess)
    theirs = [str(name) for name in loader.dataset.class_names]
    if class_names and len(theirs) != len(class_names):
        raise ValueError(
            f"The weights know {len(class_names)} classes; the data set {config.name!r} has {len(theirs)}."
        )
    for ours, name in zip(class_names, theirs, strict=False):
        if ours != name:
            raise ValueError(
                f"The classes of the data set {config.name!r} are not those of the weights:"
                f" got {name!r} in the place of {ours!r}."
            )
    return loader


def _recipe_text(source: str | Path) -> str:
    """The recipe that a weights file or run folder carries; empty for others."""
    path = Path(source)
    path = path / "best.safetensors" if path.is_dir() else path
    return read_header(path).recipe if path.is_file() and is_ours(path) else ""


def _input(model: Classifier, data: DataConfig, overrides: Sequence[str]) -> Preprocess:
    """What the weights were trained for, with what the overrides say about it."""
    keys = {"data.image_size": "size", "data.crop": "crop", "data.interpolation": "interpolation"}
    given = {override.partition("=")[0].strip() for override in overrides}
    changes = {field: getattr(data, key.removeprefix("data.")) for key, field in keys.items() if key in given}
    return replace(model.input, **changes)


def _watched(loader: EvalLoader, on_batch: Callable[[int], object]) -> Iterator[Batch]:
    for batch in loader:
        on_batch(len(batch))
        yield batch
