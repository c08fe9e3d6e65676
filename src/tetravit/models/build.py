"""Models by name."""

import fnmatch
import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from tetravit.backbones import ALIASES, VARIANTS, Backbone
from tetravit.models.classifier import Classifier
from tetravit.models.pyramid import PyramidBackbone
from tetravit.registry import pick, suggestion

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
    num_classes: int = 1000,
    image_size: Size | None = None,
    in_chans: int = 3,
    drop_path: float | None = None,
    **options: Any,
) -> Classifier:
    """Build a classifier by name.

    Args:
        name: one of `list_models()`, or an alias.
        num_classes: classes of the head; 0: embeddings (B, embed_dim) come out.
        image_size: side in pixels, or (height, width), the model is set up for; None: the paper's. Every model
            takes other sizes as well; position tables and windows follow this one.
        in_chans: channels of the images.
        drop_path: rate of stochastic depth; None: 0.
        options: other arguments of the backbone's constructor (window_size, layer_scale, ...).

    Raises:
        ValueError: unknown name or option, or a value the model cannot have.
    """
    name = resolve(name)
    backbone = build_backbone(name, image_size=image_size, in_chans=in_chans, drop_path=drop_path, **options)
    given = {"image_size": image_size, "in_chans": in_chans, "drop_path": drop_path, **options}
    model = Classifier(
        backbone, num_classes, name=name, options={k: v for k, v in given.items() if v is not None}
    )
    if image_size is not None:
        side = image_size if isinstance(image_size, int) else min(image_size)
        model.input = replace(model.input, size=side)
    return model


def create_backbone(
    name: str,
    *,
    task: Literal["detect", "segment"] = "detect",
    image_size: Size | None = None,
    in_chans: int = 3,
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
    options = {**VARIANTS[resolve(name)].func.task_options.get(task, {}), **options}
    return PyramidBackbone(
        build_backbone(name, image_size=image_size, in_chans=in_chans, drop_path=drop_path, **options)
    )


def build_backbone(
    name: str, *, image_size: Size | None, in_chans: int, drop_path: float | None, **options: Any
) -> Backbone:
    """The bare backbone of a row, with what the caller changes about it."""
    row = VARIANTS[resolve(name)]
    known = [p for p in inspect.signature(row.func).parameters if p != "self"]
    for option in options:
        if option not in known:
            raise ValueError(f"{name} has no option {option!r}.{suggestion(option, known)}")
    if in_chans < 1:
        raise ValueError(f"in_chans is 1 or more; got {in_chans!r}.")
    given = {"in_chans": in_chans, **options}
    if image_size is not None:
        given["image_size"] = check_size(image_size)
    if drop_path is not None:
        given["drop_path"] = drop_path
    return row(**given)  # type: ignore[no-any-return]


def check_size(size: Any) -> Size:
    """A side in pixels or (height, width), as given.

    Raises:
        ValueError: if it is neither, or below 32 pixels.
    """
    sides: Sequence[Any] = size if isinstance(size, (tuple, list)) else (size, size)
    if len(sides) != 2 or not all(isinstance(s, int) and not isinstance(s, bool) and s >= 32 for s in sides):
        raise ValueError(f"image_size is a side in pixels from 32 up, or (height, width); got {size!r}.")
    return size if isinstance(size, int) else (sides[0], sides[1])
