"""`load`: a trained model from a file, a run folder, published weights or the hub."""

import os
from pathlib import Path

from tetravit.models.base import Model
from tetravit.models.classifier import Classifier
from tetravit.models.create import MODELS, build_model
from tetravit.models.names import resolve
from tetravit.weights import convert
from tetravit.weights.fileformat import BadFile

BEST, LAST = "best.safetensors", "last.safetensors"


def load(source: str | Path, *, accept_license: bool = False) -> Model:
    """A trained model, in evaluation mode, with its class names and its preprocessing.

    Args:
        source: a weights file of this package; a run folder (its best weights, or the last ones if none was scored),
            or a folder from timm; NAME.TAG of published weights; a repository on the hub ("hf:OWNER/NAME").
        accept_license: accept a licence that forbids commercial use; confirmed once per licence.

    Returns:
        A classifier, segmenter or detector, see `model.kind`.

    Raises:
        ValueError: if the source does not exist, has no header and no known model, or is damaged.
    """
    source = os.path.expanduser(source)
    path = Path(source)
    if weights_of(path).is_file():
        source = weights_of(path)
    elif path.is_dir() and (path / "recipe.toml").is_file():
        raise ValueError(f"{path} holds neither {BEST} nor {LAST}: this run has no weights yet.")
    resolved = convert.find(source, accept_license=accept_license)
    if resolved.model is None:
        convert.state_of(resolved)  # what holds no weights at all is refused with that reason
        raise ValueError(
            f"{source} has no model name in it; give it: create_model(NAME, weights={str(source)!r})."
        )
    record = resolved.header or resolved.row
    task = record.task if record else "classify"
    kind = "classify" if task == "embed" else task
    if kind not in MODELS:
        known = ", ".join(MODELS)
        raise ValueError(f"{source} holds a model for the task {task!r}; load reads those for {known}.")
    name, _ = resolved.model
    try:
        model = build_model(kind, resolve(name), {}, weights=resolved).eval()
    except BadFile:
        raise
    except (ValueError, TypeError) as error:
        raise BadFile(f"{source} names a model that this version cannot build: {error}") from None
    report = model.report
    if resolved.header is not None and report is not None and (report.dropped or report.missing):
        raise BadFile(
            f"{source} does not hold the model that its header describes:"
            f" {', '.join([*report.dropped, *report.missing][:4])}."
        )
    model.thresholds = resolved.header.thresholds if resolved.header is not None else ()
    return model


def weights_of(run: Path) -> Path:
    """The weights file of a run folder: the best, or the last if none was scored."""
    return run / (BEST if (run / BEST).is_file() else LAST)


def load_classifier(source: str | Path, *, accept_license: bool = False) -> Classifier:
    """`load`, restricted to classifiers.

    Raises:
        ValueError: as `load`, and for another kind of model.
    """
    model = load(source, accept_license=accept_license)
    if not isinstance(model, Classifier):
        raise ValueError(f"{source} holds a model for the task {model.kind!r}; a classifier is needed.")
    return model
