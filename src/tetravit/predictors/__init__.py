"""Predictions of images, in their order. One kind of prediction per file.

Imports no torch: a file declares its options, and names the function that predicts.
"""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from tetravit.predictors.base import Option, Output, Predictor, Writer, function
from tetravit.registry import discover, suggestion

if TYPE_CHECKING:
    from tetravit.models import Model
    from tetravit.predictors.parts.predictions import Prediction, Predictions, Source

PREDICTORS: dict[str, Predictor] = discover(__name__, "PREDICTORS")

__all__ = ["PREDICTORS", "Option", "Output", "Predictor", "Writer", "predict", "stream"]


def stream(model: "Model", sources: "Iterable[Source]", **options: Any) -> "Iterator[Prediction]":
    """Predict one image after another.

    Args:
        model: from `tetravit.load`, with preprocessing and class names.
        sources: image files and frames; an unreadable file gets a prediction with the error.
        options: `batch_size`, `device` and the options of the predictor for this kind of model; None means not given.

    Raises:
        ValueError: for an option that the predictor does not have, or a value out of range.
    """
    row = PREDICTORS[model.kind]
    given = {name: value for name, value in options.items() if value is not None}
    for name in given:
        others = [other.noun for other in PREDICTORS.values() if name in other.names]
        if name in row.names or name in ("batch_size", "device", "categories"):
            continue
        if others:
            raise ValueError(f"{name} is an option of a {' or a '.join(others)}; the model is a {row.noun}.")
        raise ValueError(f"A {row.noun} has no option {name!r}.{suggestion(name, row.names)}")
    return function(row.run)(model, sources, **given)


def predict(model: "Model", images: Any, **options: Any) -> "Prediction | Predictions":
    """Predict images.

    Args:
        model: from `tetravit.load`, with preprocessing and class names.
        images: a file, a Pillow image, an array (Hi, Wi, 3) or a tensor (3, Hi, Wi), or a list of them; a folder, a
            shell pattern, or a video.
        options: options of `tetravit predict` for such a model (`topk`, `threshold`, `window`, ...), `batch_size` and
            `device`; default: the device of the model.

    Returns:
        A prediction for a single image, otherwise a list. `.draw()` returns a Pillow image, `.to_dict()` plain data;
        a notebook displays the picture.

    Raises:
        ValueError: if a single image cannot be read; for an unknown option or a value out of range.
    """
    from tetravit.data.decode import BadImage
    from tetravit.predictors.parts.predictions import Predictions
    from tetravit.predictors.parts.sources import gathered

    sources, single = gathered(images)
    parameter = next(iter(model.parameters()), None)
    where = "cpu" if parameter is None else parameter.device
    predictions = Predictions(stream(model, sources, **{"device": where, **options}))
    if single and predictions[0].error is not None:
        raise BadImage(str(predictions[0].image), predictions[0].error)
    return predictions[0] if single else predictions
