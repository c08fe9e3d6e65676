"""Models to files: what is written here needs nothing else to be used again."""

from pathlib import Path

from tetravit.models.base import Model
from tetravit.weights.fileformat import Header
from tetravit.weights.fileformat import save as save_file


def describe(model: Model, *, recipe: str = "", licence: str = "", source: str = "") -> Header:
    """What a file must say about `model` so that `load` can build it again."""
    return model.header(recipe=recipe, licence=licence, source=source)


def save(model: Model, path: str | Path, *, recipe: str = "", licence: str = "", source: str = "") -> Header:
    """Write `model` to one file, whole or not at all; `load(path)` gives it back.

    Args:
        model: a classifier, segmenter or detector built by name.
        path: where to; its folder exists.
        recipe: TOML text of the run that made the weights.
        licence, source: of the weights.

    Returns:
        The header, with the sha256 of every tensor.
    """
    return save_file(path, model.state_dict(), describe(model, recipe=recipe, licence=licence, source=source))
