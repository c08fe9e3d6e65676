"""Log a model to MLflow as a pyfunc model; `mlflow.pyfunc.load_model` loads it and predicts on images.

Needs the extra `mlflow`, and pandas:

    info = log_model("runs/digits")                       # a run folder, a weights file or a model
    rows = mlflow.pyfunc.load_model(info.model_uri).predict(["a.jpg", "b.jpg"])

`rows` has one row per image, as printed by `tetravit predict --json`. The artifact is a weights file of this package.
"""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tetravit.models.base import Model
from tetravit.models.files import save
from tetravit.models.load import load
from tetravit.predictors import predict
from tetravit.weights.fileformat import package_version

try:
    import mlflow
    from mlflow.pyfunc import PythonModel
except ImportError:
    raise ImportError(
        "tetravit.bridges.mlflow needs MLflow and pandas: pip install 'tetravit[mlflow]' pandas."
    ) from None

WEIGHTS = "weights"  # the name of the artifact


class ImageModel(PythonModel):
    """Name of a weights file in the MLflow artifact."""

    def load_context(self, context: Any) -> None:
        self.model = load(context.artifacts[WEIGHTS])

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # MLflow reads types as a signature
        """Paths of images, in a list, an array or the first column of a table -> a row of plain data per image.

        params: options of `tetravit.predict` (topk, threshold, batch_size, device, ...).
        """
        options: Mapping[str, Any] = params or {}
        rows: Any = predict(self.model, _paths(model_input), **options)
        return [row.to_dict() for row in rows]


def _paths(given: Any) -> list[Path]:
    """Raises: ValueError if the input is not a list of paths."""
    if hasattr(given, "iloc"):
        given = given.iloc[:, 0] if given.ndim == 2 else given
    paths = [given] if isinstance(given, str | Path) else list(given)
    for path in paths:
        if not isinstance(path, str | Path):
            raise ValueError(f"This model takes paths of images; got {type(path).__name__}.")
    return [Path(path) for path in paths]


def log_model(source: str | Path | Model, name: str = "model", **options: Any) -> Any:
    """Log a model to the MLflow run under way, or to a new one; returns MLflow's ModelInfo.

    Args:
        source: a model, or a source for `tetravit.load`: a weights file or a run folder.
        name: name of the model in MLflow.
        options: other arguments of `mlflow.pyfunc.log_model` (registered_model_name, signature, ...).

    Raises:
        ValueError: if the weights cannot be read.
    """
    model = source if isinstance(source, Model) else load(source)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.safetensors")
        save(model, path)
        given = {"pip_requirements": [f"tetravit=={package_version()}"], **options}
        return mlflow.pyfunc.log_model(
            name=name, python_model=ImageModel(), artifacts={WEIGHTS: path}, **given
        )
