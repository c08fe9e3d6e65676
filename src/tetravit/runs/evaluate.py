"""Score weights on a data set, by the same protocols that select the best weights of a run."""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from tetravit.data.build import for_head
from tetravit.data.config import DataConfig
from tetravit.data.datasets.base import DatasetInfo
from tetravit.data.evaluation import EvalLoader, make_eval_loader
from tetravit.data.loader import make_augmented_loader
from tetravit.data.parts import Part, class_notes
from tetravit.models import Model, load
from tetravit.models.create import MODELS
from tetravit.models.load import weights_of
from tetravit.protocols import PROTOCOLS, Loaders, Protocol
from tetravit.protocols.base import device_of
from tetravit.protocols.references import Reference, references
from tetravit.recipe import loads
from tetravit.structures import Batch, Preprocess
from tetravit.weights import CHECKPOINTS, Checkpoint
from tetravit.weights.fileformat import is_ours, read_header
from tetravit.weights.store import row_at
from tetravit.world import pick_device

Split = Part

# Default recipe for weights without one, by task.
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


@dataclass(frozen=True)
class Result:
    """One row of a table of results.

    scores: by name, shares in 0..1. seconds: including image loading. bad: unreadable images, which were skipped,
    with causes. findings: from the protocol, for a report. references: published scores of these weights on this
    data.
    """

    weights: str
    data: str
    split: str
    images: int
    scores: dict[str, float]
    seconds: float
    device: str
    bad: dict[str, str] = field(default_factory=dict)
    findings: dict[str, Any] = field(default_factory=dict, repr=False)
    references: tuple[Reference, ...] = ()
    notes: tuple[str, ...] = ()  # about classes missing in the data

    @property
    def images_per_s(self) -> float:
        return self.images / self.seconds


def score(
    model: nn.Module,
    loaders: Loaders,
    protocol: Protocol,
    *,
    weights: str,
    data: str,
    split: Split = "val",
    on_batch: Callable[[int], object] = lambda count: None,
) -> Result:
    """Score a model in float32, in evaluation mode, on its device.

    Args:
        model: passed to the protocol.
        loaders: images, preprocessed for the model.
        protocol: the evaluation protocol.
        weights, data, split: names for the row.
        on_batch: called with the number of images before each validation batch.

    Raises:
        ValueError: if the set is empty, or does not match the model.
    """
    loader: Any = loaders.validation
    device = device_of(model)
    watched = Loaders(
        _Watched(loader, on_batch),
        loaders.info,
        make_train=lambda: loaders.train,
        make_augmented=lambda text, size, seed: loaders.augmented(text, batch_size=size, seed=seed),
        world=loaders.world,
    )
    start = time.perf_counter()
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            scores = protocol.score(model, watched)
    finally:
        model.train(training)
    return Result(
        weights=weights,
        data=data,
        split=split,
        images=loader.total - len(loader.bad) or int(scores.findings.get("count", 0)),
        scores=scores.values,
        seconds=time.perf_counter() - start,
        device=str(device),
        bad=dict(loader.bad),
        findings={**scores.findings, "class_names": loaders.info.class_names},
        notes=tuple(class_notes(loaders.info.counts, loaders.info.class_names, f"the {split} images")),
    )


def evaluate(
    source: str | Path,
    overrides: Sequence[str] = (),
    *,
    split: Split = "val",
    device: str = "auto",
    accept_license: bool = False,
    images: int | None = None,
    prepare: Callable[[Model], Model] | None = None,
    on_batch: Callable[[int], object] = lambda count: None,
) -> Result:
    """Score trained weights on their own data set, or on other data.

    Args:
        source: a source for `tetravit.load`: a weights file, a run folder, a published name.
        overrides: changes to the recipe stored with the weights ("data.root=/images"). Weights without a recipe are
            scored on ImageNet.
        split: split of the data set.
        device: auto, cpu, cuda, cuda:N or mps.
        accept_license: accept a licence that forbids commercial use; confirmed once per licence.
        images: number of images to score, evenly spaced; None: all.
        prepare: a function applied to the model on its device before scoring.
        on_batch: called with the number of images before each batch.

    Raises:
        ValueError: if the weights or the data are not available, their classes differ, or an override is not in
            section data or evaluate.
    """
    source = os.path.expanduser(source)
    _check_sections(overrides)
    where = pick_device(device)
    model = load(source, accept_license=accept_license)
    if prepare is not None:
        model = prepare(model.to(where))
    text = recipe_of(source)
    if not text and not getattr(model, "num_classes", 1):  # features only, no classes
        overrides = ["evaluate.protocol=knn", *overrides]
    recipe = loads(text or USUAL[model.kind], overrides, name=f"The recipe in {source}")
    seen = for_head(recipe.data, has_masks=getattr(getattr(model, "head", None), "has_masks", True))
    recipe = recipe.model_copy(update={"data": seen})
    prepared = _input(model, recipe.data, overrides)
    protocol = PROTOCOLS[recipe.evaluate.protocol](recipe.evaluate)
    if protocol.kinds and model.kind not in protocol.kinds:
        nouns = " or ".join(f"{MODELS[kind].noun}s" for kind in protocol.kinds)
        usual = ", ".join(name for name, row in PROTOCOLS.items() if model.kind in row.kinds)
        raise ValueError(
            f"The protocol {protocol.name!r} scores {nouns}; {source} is a {MODELS[model.kind].noun}."
            f" Protocols for it: {usual}."
        )
    if not protocol.reads_data:
        none = Loaders(_NoImages(), DatasetInfo("unlabelled", 0, ()))
        return score(model.to(where), none, protocol, weights=str(source), data=protocol.name, split=split)
    loader = open_data(
        recipe.data,
        prepared,
        class_names=model.class_names,
        split=split,
        scales=recipe.evaluate.eval_scales(),
        images=images,
    )
    loaders = Loaders(
        loader,
        loader.dataset.info,
        make_train=lambda: open_data(recipe.data, prepared, class_names=model.class_names, split="train"),
        make_augmented=partial(make_augmented_loader, recipe.data, prepared, model.class_names),
    )
    lines = protocol.prepare(loaders)
    result = score(
        model.to(where),
        loaders,
        protocol,
        weights=str(source),
        data=recipe.data.name,
        split=split,
        on_batch=on_batch,
    )
    row = published(source)
    fair = row is not None and row.preprocess == prepared and split == "val"
    known = references(row, recipe.data.name, recipe.evaluate) if row and fair else ()
    known = tuple(figure for figure in known if figure.score in result.scores)
    return replace(result, references=known, notes=(*lines, *result.notes))


def published(source: str | Path) -> Checkpoint | None:
    """The catalogue row of a model named by `source`, or from which a file of ours was converted."""
    path, row = Path(source), CHECKPOINTS.get(str(source))
    if row is None and path.is_file() and is_ours(path) and not read_header(path).recipe:
        row = row_at(read_header(path).source)
    return row


def open_data(
    config: DataConfig,
    preprocess: Preprocess,
    *,
    class_names: Sequence[str] = (),
    split: Split = "val",
    scales: Sequence[float] = (1.0,),
    images: int | None = None,
) -> EvalLoader:
    """The images of a data section, preprocessed for some weights; `images`: number of images, evenly spaced.

    Raises:
        ValueError: if the data is not available, or has classes outside `class_names`.
    """
    return make_eval_loader(
        config, split=split, class_names=class_names, preprocess=preprocess, scales=scales, images=images
    )


def _check_sections(overrides: Sequence[str]) -> None:
    """Raises: ValueError for an override outside data.* and evaluate.*: the model is fixed by the weights."""
    for override in overrides:
        section = override.partition("=")[0].partition(".")[0].strip()
        if section not in ("data", "evaluate"):
            raise ValueError(f"evaluate takes changes of data.* and evaluate.*; got {override!r}.")


def recipe_of(source: str | Path) -> str:
    """The recipe stored in a weights file or run folder; empty if there is none."""
    path = Path(source)
    path = weights_of(path) if path.is_dir() else path
    return read_header(path).recipe if path.is_file() and is_ours(path) else ""


def _input(model: Model, data: DataConfig, overrides: Sequence[str]) -> Preprocess:
    """The recipe of the weights, with the overrides applied."""
    given = {override.partition("=")[0].strip().removeprefix("data.") for override in overrides}
    fields = {"size" if key in ("image_size", "short") else key for key in given}
    known = ("size", "crop", "interpolation", "mode", "longest", "mean", "std")
    return replace(model.input, **{key: getattr(data.preprocess, key) for key in known if key in fields})


class _NoImages:
    """The loader of a protocol with its own images."""

    total = 0
    bad: ClassVar[dict[str, str]] = {}

    def __iter__(self) -> Iterator[Batch]:
        return iter(())


class _Watched:
    """A loader that reports the number of images of each batch."""

    def __init__(self, loader: Iterable[Batch], on_batch: Callable[[int], object]) -> None:
        self._loader, self._on_batch = loader, on_batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._loader:
            self._on_batch(len(batch))
            yield batch
