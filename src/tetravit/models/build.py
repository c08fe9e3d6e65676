"""Models by name."""

import fnmatch
import inspect
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from tetravit.backbones import ALIASES, VARIANTS, Backbone
from tetravit.data import imagenet
from tetravit.models.classifier import Classifier
from tetravit.models.pyramid import PyramidBackbone
from tetravit.registry import pick, suggestion
from tetravit.structures import Preprocess, for_channels
from tetravit.weights import convert

Size = int | tuple[int, int]


def resolve(name: str) -> str:
    """This package's name of a model: aliases (the authors' own names) are followed.

    Raises:
        ValueError: if there is no such model; the nearest one is suggested.
    """
    name = ALIASES.get(name, name)
    if name not in VARIANTS:
        pick({**VARIANTS, **ALIASES}, name, "model")
    return name


def family(name: str) -> str:
    """The family file a model comes from: "xcit", "convit", "gcvit", "twins", "deit"."""
    return pick(VARIANTS, resolve(name), "model").func.__module__.rsplit(".", 1)[-1]  # type: ignore[no-any-return]


def list_models(pattern: str = "*") -> list[str]:
    """Names of all models, or of those that a shell pattern matches ("gcvit_*", "*_p8")."""
    return sorted(fnmatch.filter(VARIANTS, pattern))


def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    image_size: Size | None = None,
    in_chans: int | None = None,
    drop_path: float | None = None,
    weights: str | Path | Mapping[str, Any] | None = None,
    accept_license: bool = False,
    **options: Any,
) -> Classifier:
    """Build a classifier by name.

    Args:
        name: one of `list_models()`, an alias, or NAME.TAG, which is NAME with the published weights TAG.
        num_classes: classes of the head; 0: embeddings (B, embed_dim) come out. None: those of the weights,
            without weights 1000.
        image_size: side in pixels, or (height, width), the model is set up for; None: that of the weights,
            without weights the paper's. Every model takes other sizes as well; position tables and windows
            follow this one.
        in_chans: channels of the images; None: those of the weights, without weights 3.
        drop_path: rate of stochastic depth; None: 0.
        weights: the tag of published weights ("in1k"), a file in any known layout, a URL, a repository
            ("hf:OWNER/NAME"), a state dict; None: the authors' initialisation. What became of every tensor is
            told on standard error, and kept as `model.report`.
        accept_license: agree to a licence that forbids commercial use; asked for once.
        options: other arguments of the backbone's constructor (window_size, layer_scale, ...).

    Raises:
        ValueError: unknown name or option, a value the model cannot have, or weights that do not fit.
    """
    name, dot, tag = name.partition(".")
    name = resolve(name)
    if dot and weights is not None:
        raise ValueError(f"Weights are named once: {name}.{tag}, or weights=...; got both.")
    weights = tag if dot else weights
    found = None if weights is None else convert.find(weights, model=name, accept_license=accept_license)
    given = {
        "num_classes": num_classes,
        "image_size": image_size,
        "in_chans": in_chans,
        "drop_path": drop_path,
    }
    options = {k: v for k, v in {**given, **options}.items() if v is not None}
    if found is None:
        return assemble(name, options)
    known = found.model[1] if found.model and resolve(found.model[0]) == name else {}
    return fill(assemble(name, {**tuples(known), **options}, found.preprocess), found)


def assemble(name: str, options: Mapping[str, Any], input: Preprocess | None = None) -> Classifier:
    """A classifier with fresh weights; `options` are arguments of `create_model`."""
    options = dict(options)
    num_classes = options.pop("num_classes", 1000)
    model = Classifier(build_backbone(name, **options), num_classes, name=name, options=options)
    model.input = input or model.input
    if "image_size" in options:
        model.input = replace(model.input, size=options["image_size"])
    model.input = for_channels(model.input, model.backbone.in_chans)
    return model


def fill(model: Classifier, found: convert.Found) -> Classifier:
    """Put weights that were found into `model`, and tell what became of every tensor where that is news."""
    model.report = report = convert.load(model, found)
    if found.header is None or report.resized or report.dropped or report.missing:
        print(report, file=sys.stderr)
    names = class_names(found)
    model.class_names = names if len(names) == model.num_classes else ()
    return model


def class_names(found: convert.Found) -> tuple[str, ...]:
    """What the classes of weights that were found are called; none: not known."""
    if found.header and found.header.class_names:
        return found.header.class_names
    return imagenet.class_names() if found.imagenet else ()


def tuples(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options that went through JSON, with its lists as the tuples that constructors take."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}


def create_backbone(
    name: str,
    *,
    task: Literal["detect", "segment"] = "detect",
    image_size: Size | None = None,
    in_chans: int | None = None,
    drop_path: float | None = None,
    **options: Any,
) -> PyramidBackbone:
    """Build a backbone that gives four maps at strides 4, 8, 16, 32, with the authors' adapter.

    Args:
        name: one of `list_models()`, or an alias.
        task: whose release to follow where the authors' detection and segmentation code differ.
        image_size, in_chans, drop_path, options: as in `create_model`.

    Raises:
        ValueError: unknown name or option, or a value the model cannot have.
    """
    given = {"image_size": image_size, "in_chans": in_chans, "drop_path": drop_path}
    released = VARIANTS[resolve(name)].func.task_options.get(task, {})
    options = {**released, **options, **{k: v for k, v in given.items() if v is not None}}
    return PyramidBackbone(build_backbone(name, **options))


def build_backbone(name: str, **options: Any) -> Backbone:
    """The bare backbone of a row, with what the caller changes about it."""
    row = VARIANTS[resolve(name)]
    known = [p for p in inspect.signature(row.func).parameters if p != "self"]
    for option in options:
        if option not in known:
            raise ValueError(f"{name} has no option {option!r}.{suggestion(option, known)}")
    if options.get("in_chans", 1) < 1:
        raise ValueError(f"in_chans is 1 or more; got {options['in_chans']!r}.")
    if "image_size" in options:
        options["image_size"] = check_size(options["image_size"])
    return row(**options)  # type: ignore[no-any-return]


def check_size(size: Any) -> Size:
    """A side in pixels or (height, width), as given.

    Raises:
        ValueError: if it is neither, or below 32 pixels.
    """
    sides: Sequence[Any] = size if isinstance(size, (tuple, list)) else (size, size)
    if len(sides) != 2 or not all(isinstance(s, int) and not isinstance(s, bool) and s >= 32 for s in sides):
        raise ValueError(f"image_size is a side in pixels from 32 up, or (height, width); got {size!r}.")
    return size if isinstance(size, int) else (sides[0], sides[1])
