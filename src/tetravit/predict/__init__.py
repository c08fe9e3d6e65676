"""Weights + images -> what is in them, in the order of the images. One kind of answer per file."""

import inspect
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from tetravit.models.load import Model
from tetravit.predict.base import Prediction
from tetravit.predict.files import find_images
from tetravit.registry import discover

PREDICTORS: dict[str, Callable[..., Iterator[Prediction]]] = discover(__name__, "PREDICTORS")

__all__ = ["PREDICTORS", "Prediction", "find_images", "predict"]


def predict(model: Model, images: Iterable[Path], **options: Any) -> Iterator[Prediction]:
    """What `model` says about image files.

    Args:
        model: with its preprocessing and class names, as `tetravit.load` gives it.
        images: files; those that cannot be read get a prediction that says why.
        options: of the predictor for `model.task`; None counts as not given.

    Raises:
        ValueError: for an option that such a model does not have, or a value it cannot take.
    """
    row = PREDICTORS[model.task]
    given = {name: value for name, value in options.items() if value is not None}
    for option in given:
        if option not in inspect.signature(row).parameters:
            serving = [
                task for task, other in PREDICTORS.items() if option in inspect.signature(other).parameters
            ]
            uses = f"; it is for the task {' or '.join(serving)}" if serving else ""
            raise ValueError(f"A model that can {model.task} has no option {option!r}{uses}.")
    return row(model, images, **given)
