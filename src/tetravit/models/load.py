"""`load`: a trained model from whatever names it."""

from pathlib import Path

from tetravit.models.build import assemble, fill, resolve, tuples
from tetravit.models.classifier import Classifier
from tetravit.weights import convert
from tetravit.weights.fileformat import BadFile

BEST = "best.safetensors"


def load(source: str | Path, *, accept_license: bool = False) -> Classifier:
    """A trained model, in evaluation mode, with its class names and its preprocessing.

    Args:
        source: a weights file of this package; the folder of a run (its best weights are taken), or one as
            timm saves it; NAME.TAG of published weights; a repository on the hub ("hf:OWNER/NAME").
        accept_license: agree to a licence that forbids commercial use; asked for once.

    Raises:
        ValueError: if it names nothing, does not say which model it holds, or is damaged.
    """
    path = Path(source)
    if (path / BEST).is_file():
        source = path / BEST
    elif path.is_dir() and (path / "recipe.toml").is_file():
        raise ValueError(f"{path} holds no {BEST}: this run has not been evaluated yet.")
    found = convert.find(source, accept_license=accept_license)
    if found.model is None:
        raise ValueError(
            f"{source} does not say which model it holds; say it: create_model(NAME, weights={str(source)!r})."
        )
    task = found.header.task if found.header else found.row.task if found.row else "classify"
    if task not in ("classify", "embed"):
        raise ValueError(f"{source} holds a model for the task {task!r}; load reads classifiers.")
    name, options = found.model
    try:
        model = assemble(resolve(name), tuples(options), found.preprocess)
    except (ValueError, TypeError) as error:
        raise BadFile(f"{source} names a model that this version cannot build: {error}") from None
    return fill(model, found).eval()
