"""`load`: a trained model from whatever names it."""

from pathlib import Path

from tetravit.models.build import list_models
from tetravit.models.classifier import Classifier
from tetravit.models.files import read_model
from tetravit.registry import suggestion

BEST = "best.safetensors"


def load(source: str | Path) -> Classifier:
    """A trained model, in evaluation mode, with its class names and its preprocessing.

    Args:
        source: a weights file of this package, or the folder of a run (its best weights are taken).

    Raises:
        ValueError: if there is no such thing, or it is damaged.
    """
    path = Path(source)
    if path.is_dir():
        if not (path / BEST).is_file():
            raise ValueError(f"{path} holds no {BEST}; name the folder of a run that has evaluated once.")
        path = path / BEST
    if path.is_file():
        return read_model(path)
    if isinstance(source, Path) or path.suffix or "/" in source:
        raise ValueError(f"There is no file or run folder {str(source)!r}.")
    raise ValueError(
        f"There is no file, run folder or published model {source!r}.{suggestion(source, list_models())}"
    )
