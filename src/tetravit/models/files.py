"""Save models: one self-contained file per model."""

from pathlib import Path

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from tetravit.models.base import Model
from tetravit.models.create import MODELS
from tetravit.models.names import resolve
from tetravit.weights.fileformat import Header
from tetravit.weights.fileformat import save as save_file


def describe(model: Model, *, recipe: str = "", licence: str = "", source: str = "") -> Header:
    """The header of a file of `model`, from which `load` rebuilds it."""
    return model.header(recipe=recipe, licence=licence, source=source)


def save(model: Model, path: str | Path, *, recipe: str = "", licence: str = "", source: str = "") -> Header:
    """Write `model` to one file atomically; `load(path)` restores it.

    Args:
        model: a classifier, segmenter or detector built by name.
        path: output file; its folder must exist.
        recipe: TOML text of the run that trained the weights.
        licence, source: of the weights.

    Returns:
        The header, with the sha256 of every tensor.

    Raises:
        ValueError: if the model differs from that of its name and options, for example by a replaced head.
    """
    check_saved(model)
    return save_file(path, model.state_dict(), describe(model, recipe=recipe, licence=licence, source=source))


def check_saved(model: Model) -> None:
    """Compare the tensors of a model with those of a model built from its name, options and number of classes.

    Raises:
        ValueError: if they differ; names the first part that differs.
    """
    if not model.name:
        raise ValueError(
            "A model is saved with the name that builds it; this one has none: use create_model(NAME)."
        )
    options = {k: v for k, v in model.options.items() if k != "head_options"}
    with torch.device("meta"):
        twin = MODELS[model.kind].build(
            resolve(model.name),
            options,
            head=model.head_name,
            head_options=model.options.get("head_options", {}),
            num_classes=model.num_classes,
        )
    if model.class_names and len(model.class_names) != model.num_classes:
        raise ValueError(
            f"The model has {model.num_classes} classes and {len(model.class_names)} class_names; set one name per"
            " class, or none: ()."
        )
    own, built = ({k: tuple(v.shape) for k, v in m.state_dict().items()} for m in (model, twin))
    other = next((name for name in (*own, *built) if own.get(name) != built.get(name)), None)
    if other is None:
        _check_modules(model, twin)
        return
    part = other.split(".")[0]
    cure = "; model.reset_head(N) changes the number of classes" if part in ("head", "head_dist") else ""
    raise ValueError(
        f"model.{part} is not what {model.name} with {model.num_classes} classes has: {other!r} is"
        f" {own.get(other, 'missing')}, expected {built.get(other, 'none')}{cure}."
    )


def _check_modules(model: Model, twin: Model) -> None:
    """Check that modules have the same class as in `twin`: equal shapes may hide another forward pass.

    Batch norms may be of any class, such as SyncBatchNorm.
    """
    built = dict(twin.named_modules())
    for name, module in model.named_modules():
        other = built.get(name)
        if other is None or (isinstance(module, _BatchNorm) and isinstance(other, _BatchNorm)):
            continue
        if type(module) in type(other).__mro__ or type(module).forward is type(other).forward:
            continue
        raise ValueError(
            f"model.{name} is a {type(module).__name__}; {model.name} has a {type(other).__name__} there."
            " A file holds tensors alone: the loaded model would compute something else."
        )
