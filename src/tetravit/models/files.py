"""Models to files and back: a file written here needs nothing else to be used again."""

from pathlib import Path
from typing import Any

from tetravit.models.build import create_model
from tetravit.models.classifier import Classifier
from tetravit.weights.fileformat import BadFile, Header
from tetravit.weights.fileformat import read as read_file
from tetravit.weights.fileformat import save as save_file


def describe(model: Classifier, *, recipe: str = "", licence: str = "", source: str = "") -> Header:
    """What a file must say about `model` so that `load` can build it again."""
    return Header(
        model=model.name,
        options=model.options,
        num_classes=model.num_classes,
        class_names=model.class_names,
        preprocess=model.input,
        recipe=recipe,
        licence=licence,
        source=source,
    )


def save(
    model: Classifier, path: str | Path, *, recipe: str = "", licence: str = "", source: str = ""
) -> Header:
    """Write `model` to one file, whole or not at all; `load(path)` gives it back.

    Args:
        model: a classifier built by name.
        path: where to; its folder exists.
        recipe: TOML text of the run that made the weights.
        licence, source: of the weights.

    Returns:
        The header, with the sha256 of every tensor.
    """
    return save_file(path, model.state_dict(), describe(model, recipe=recipe, licence=licence, source=source))


def read_model(path: Path) -> Classifier:
    """The model of a file that `save` wrote, verified, in evaluation mode.

    Raises:
        BadFile: if the file is damaged, or does not fit the model that it names.
    """
    tensors, header = read_file(path)
    if header.task != "classify":
        raise BadFile(f"{path} holds a model for the task {header.task!r}; this reads classifiers.")
    try:
        model = create_model(header.model, num_classes=header.num_classes, **_options(header))
    except (ValueError, TypeError) as error:
        raise BadFile(f"{path} names a model that this version cannot build: {error}") from None
    expected = model.state_dict()
    wrong = sorted(k for k in expected.keys() | tensors.keys() if _shape(expected, k) != _shape(tensors, k))
    if wrong:
        raise BadFile(
            f"{path} does not hold a {header.model}: {len(wrong)} tensors differ, the first {wrong[0]!r}."
        )
    model.load_state_dict(tensors)  # copies: the tensors are views of one mapped file
    model.class_names, model.input = header.class_names, header.preprocess
    return model.eval()


def _options(header: Header) -> dict[str, Any]:
    """The header's options with the lists of JSON as the tuples that constructors take."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in header.options.items()}


def _shape(tensors: Any, key: str) -> tuple[int, ...] | None:
    return tuple(tensors[key].shape) if key in tensors else None
