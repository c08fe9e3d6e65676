"""Weights + data set -> scores, by the same `Task.score` that a training run is judged with."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tetravit.data import imagenet
from tetravit.data.config import DataConfig
from tetravit.data.evaluation import EvalLoader, make_eval_loader
from tetravit.models import load
from tetravit.models.load import Model
from tetravit.recipe import loads
from tetravit.structures import Batch, Preprocess
from tetravit.tasks import TASKS, TaskConfig
from tetravit.weights import CHECKPOINTS, Checkpoint
from tetravit.weights.fileformat import is_ours, read_header
from tetravit.weights.store import row_at
from tetravit.world import pick_device

Split = Literal["train", "val"]

# What weights without a recipe of their own are scored on, by task.
USUAL = {
    task: f"""
epochs = 300
task.name = "{task}"
model.name = "deit_tiny"
data.name = "{data}"
data.batch_size = {batch}
"""
    for task, data, batch in (
        ("classify", "imagenet", 64),
        ("segment", "ade20k", 1),
        ("detect", "coco", 1),
    )
}

# Data sets that the catalogue has figures for: images in the whole set, and the catalogue's name of each score.
FIGURES: dict[str, tuple[int, dict[str, str]]] = {
    "imagenet": (50_000, {"top1": "top1", "top5": "top5"}),
    "imagenet_real": (46_837, {"top1": "real"}),
    "imagenet_v2": (10_000, {"top1": "v2"}),
    "imagenet_a": (7_500, {"top1": "a"}),
    "imagenet_r": (30_000, {"top1": "r"}),
    "imagenet_sketch": (50_889, {"top1": "sketch"}),
    "ade20k": (2_000, {"miou": "miou"}),
    "coco": (5_000, {"box_ap": "box_ap", "mask_ap": "mask_ap"}),
}


@dataclass(frozen=True)
class Reference:
    """What others report for the same weights on the same data.

    score: its name in `Result.scores`. value: a share in 0..1. kind: published by the authors of the weights, or
    measured by somebody else. by: where it is printed, and how images were prepared if otherwise. images: in the
    whole set, which the figure is for.
    """

    score: str
    value: float
    kind: Literal["published", "measured"]
    by: str
    images: int


@dataclass(frozen=True)
class Result:
    """One row of a table of results.

    scores: by name, shares in 0..1. seconds: with the reading of the images. bad: images that could not be read
    and were passed over, with their causes. findings: what a report draws, as the task leaves it. references: what
    others report for these weights on this data.
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
    references: tuple[Reference, ...] = ()

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
    task: TaskConfig | str = "classify",
    device: torch.device | str = "cpu",
    on_batch: Callable[[int], object] = lambda count: None,
) -> Result:
    """Put every image of a loader to a model, in float32.

    Args:
        model: what the task calls.
        loader: the images, prepared for the model. A set of some of a model's classes has only those compete.
        weights, data, split: what to call them in the row.
        task: the task whose scores are wanted: its name, or its section of a recipe.
        device: where to compute.
        on_batch: told the number of images before each batch.

    Raises:
        ValueError: if the set is empty, or holds something else than the task reads.
    """
    dataset = loader.dataset
    row = TASKS[task if isinstance(task, str) else task.name]
    config = row.Config(name=task) if isinstance(task, str) else task
    info = dataset.info
    if info.classes is not None:
        model = _Chosen(model, info.classes)
    built = row(model, config, num_classes=dataset.num_classes)  # type: ignore[call-arg]
    judge = built.to(device).eval()
    start = time.perf_counter()
    with torch.inference_mode():
        batches = _watched(loader, on_batch)
        scores = _score_several(judge.model, batches, device) if info.several else judge.score(batches)
    return Result(
        weights=weights,
        data=data,
        split=split,
        images=loader.total - len(loader.bad),
        scores=scores,
        seconds=time.perf_counter() - start,
        device=str(device),
        bad=dict(loader.bad),
        findings={**judge.findings, "class_names": tuple(map(str, dataset.class_names))},
    )


def evaluate(
    source: str | Path,
    overrides: Sequence[str] = (),
    *,
    split: Split = "val",
    device: str = "auto",
    accept_license: bool = False,
    prepare: Callable[[Model], Model] | None = None,
    on_batch: Callable[[int], object] = lambda count: None,
) -> Result:
    """Score trained weights on the data of their own run, or on other data.

    Args:
        source: what `tetravit.load` takes: a weights file, a run folder, a published name.
        overrides: changes to the recipe that the weights carry ("data.root=/images"). Weights without one are
            scored on ImageNet.
        split: which part of the data.
        device: auto, cpu, cuda, cuda:N or mps.
        accept_license: agree to a licence that forbids commercial use; asked for once.
        prepare: what is done to the model on its device before it is scored.
        on_batch: told the number of images before each batch.

    Raises:
        ValueError: if the weights or the data cannot be had, or their classes differ.
    """
    where = pick_device(device)
    model = load(source, accept_license=accept_license)
    if prepare is not None:
        model = prepare(model.to(where))
    recipe = loads(_recipe_text(source) or USUAL[model.task], overrides, name=f"The recipe in {source}")
    prepared = _input(model, recipe.data, overrides)
    loader = open_data(
        recipe.data,
        prepared,
        class_names=model.class_names,
        split=split,
        scales=recipe.task.eval_scales(),
    )
    result = score(
        model,
        loader,
        weights=str(source),
        data=recipe.data.name,
        split=split,
        task=recipe.task,
        device=where,
        on_batch=on_batch,
    )
    row = published(source)
    fair = row is not None and row.preprocess == prepared and split == "val"
    known = references(row, recipe.data.name, recipe.task) if row and fair else ()
    return replace(result, references=known)


def published(source: str | Path) -> Checkpoint | None:
    """The catalogue's row of a model that `source` names, or that a file of ours was converted from."""
    path, row = Path(source), CHECKPOINTS.get(str(source))
    if row is None and path.is_file() and is_ours(path) and not read_header(path).recipe:
        row = row_at(read_header(path).source)
    return row if row and row.task != "embed" else None


def references(row: Checkpoint, data: str, task: TaskConfig | None = None) -> tuple[Reference, ...]:
    """The figures of a row of the catalogue on a data set by name, for scores measured as `task` says."""
    images, names = FIGURES.get(data, (0, {}))
    found = []
    for score, usual in names.items():
        name = usual if task is None else task.published_as(usual)
        if name is None:
            continue
        if name in row.published:
            found.append(Reference(score, row.published[name] / 100, "published", row.published_in, images))
        if name in row.measured:
            found.append(Reference(score, row.measured[name] / 100, "measured", row.measured_by, images))
    return tuple(found)


def open_data(
    config: DataConfig,
    preprocess: Preprocess,
    *,
    class_names: Sequence[str] = (),
    split: Split = "val",
    scales: Sequence[float] = (1.0,),
) -> EvalLoader:
    """The images of a data section, prepared for some weights.

    Raises:
        ValueError: if the data cannot be had, or its classes are not `class_names` in that order.
    """
    loader = make_eval_loader(config, split=split, preprocess=preprocess, scales=scales)
    theirs = imagenet.readable(map(str, loader.dataset.class_names))
    class_names = imagenet.readable(class_names)
    classes = loader.dataset.info.classes
    if classes is not None and len(class_names) == 1000:
        class_names = [class_names[i] for i in classes]
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


class _Chosen(nn.Module):
    """Those logits of a model that a data set has classes for.

    Raises:
        ValueError: if the model has not the 1000 classes that `classes` counts in.
    """

    def __init__(self, model: nn.Module, classes: Sequence[int]) -> None:
        super().__init__()
        have = getattr(model, "num_classes", 1000)
        if have != 1000:
            raise ValueError(f"The model has {have} classes; the data takes those of ImageNet-1k, 1000.")
        self.model, self.num_classes = model, len(classes)
        self.register_buffer("classes", torch.tensor(classes), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        return logits[:, self.classes]  # type: ignore[index]


def _score_several(
    model: nn.Module, batches: Iterator[Batch], device: torch.device | str
) -> dict[str, float]:
    """top1, top5: shares of the images that have one of several right answers among the likeliest."""
    hits, count = {1: 0, 5: 0}, 0
    for batch in batches:
        best = model(batch.images.to(device)).float().topk(5, dim=1).indices.tolist()
        for answers, guesses in zip(batch.targets, best, strict=True):
            count += 1
            for k in hits:
                hits[k] += not set(answers).isdisjoint(guesses[:k])
    if not count:
        raise ValueError("The set to score on is empty.")
    return {f"top{k}": n / count for k, n in hits.items()}


def _recipe_text(source: str | Path) -> str:
    """The recipe that a weights file or run folder carries; empty for others."""
    path = Path(source)
    path = path / "best.safetensors" if path.is_dir() else path
    return read_header(path).recipe if path.is_file() and is_ours(path) else ""


def _input(model: Model, data: DataConfig, overrides: Sequence[str]) -> Preprocess:
    """What the weights were trained for, with what the overrides say about it."""
    given = {override.partition("=")[0].strip().removeprefix("data.") for override in overrides}
    fields = {"size" if key in ("image_size", "short") else key for key in given}
    known = ("size", "crop", "interpolation", "mode", "longest")
    return replace(model.input, **{key: getattr(data.preprocess, key) for key in known if key in fields})


def _watched(loader: EvalLoader, on_batch: Callable[[int], object]) -> Iterator[Batch]:
    for batch in loader:
        on_batch(len(batch))
        yield batch
