"""Weights + images -> predictions, in the order of the images. One kind of prediction per file.

Importing this loads no torch: a file declares its options, and names the function that does the work.
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
        model: with its preprocessing and class names, as `tetravit.load` gives it.
        sources: image files and frames; a file that cannot be read gets a prediction that says why.
        options: `batch_size`, `device` and those of the predictor for such a model; None counts as not given.

    Raises:
        ValueError: for an option that such a model does not have, or a value out of range.
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
        model: with its preprocessing and class names, as `tetravit.load` gives it.
        images: a file, a Pillow image, an array (Hi, Wi, 3) or a tensor (3, Hi, Wi), or a list of them; a folder, a
            shell pattern, a video.
        options: those of `tetravit predict` for such a model (`topk`, `threshold`, `window`, ...), `batch_size` and
            `device`; the device of the model by default.

    Returns:
        A prediction for a single image, a list of them for everything else. `.draw()` gives a Pillow image,
        `.to_dict()` plain data; a notebook shows the picture.

    Raises:
        ValueError: for an image that cannot be read, where there is only one; for an unknown option or a value out
            of range.
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
