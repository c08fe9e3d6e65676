"""Train, evaluate and predict from Python, a notebook say: what the verbs of the command line do."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tetravit.engine.log import Summary
from tetravit.models import load
from tetravit.predictors import predict as predict_with
from tetravit.recipe import Recipe, dump, find, loads
from tetravit.recipe import load as load_recipe
from tetravit.runs import train as run
from tetravit.runs.evaluate import Result, Split
from tetravit.runs.evaluate import evaluate as score

if TYPE_CHECKING:
    from tetravit.predictors.parts.predictions import Prediction, Predictions


def train(
    recipe: str | Path | Recipe | None = None,
    *,
    run_dir: str | Path | None = None,
    resume: str | Path | None = None,
    dry_run: bool = False,
    log: Sequence[str] = (),
    **overrides: Any,
) -> Summary:
    """Run a recipe, or continue a run.

    Args:
        recipe: a name from `tetravit list recipes`, a TOML file, or a `Recipe`; None with `resume`: that of
            the run.
        run_dir: the folder of the run; None: a new folder below `runs`.
        resume: the folder of a run to continue.
        dry_run: check everything and print the plan, train nothing.
        log: trackers to feed: "tensorboard", "wandb", "mlflow".
        overrides: changes to the recipe: epochs=5, optim={"lr": 1e-3}, **{"data.root": "images"}.

    Returns:
        How the run ended; `summary.run_dir` is its folder.

    Raises:
        ValueError: in one line, for anything in the recipe that is unknown or not possible.
    """
    changes = _flat(overrides)
    chosen = recipe if isinstance(recipe, Recipe) else None
    if isinstance(recipe, str | Path):
        chosen = load_recipe(find(recipe), changes)
    elif chosen is not None and changes:
        chosen = loads(dump(chosen), changes)
    elif resume is not None and changes:
        chosen = load_recipe(Path(resume) / "recipe.toml", changes)
    return run(chosen, run_dir, resume=resume, dry_run=dry_run, log=log)


def evaluate(
    weights: str | Path,
    *,
    split: Split = "val",
    device: str = "auto",
    accept_license: bool = False,
    **overrides: Any,
) -> Result:
    """Score weights on the data of their own run, or on other data.

    Args:
        weights: a weights file, a run folder, NAME.TAG of published weights.
        split: which part of the data.
        device: auto, cpu, cuda, cuda:N or mps.
        accept_license: accept a licence that forbids commercial use; once per licence.
        overrides: changes to the recipe of the weights: data={"root": "images"}.

    Raises:
        ValueError: if the weights or the data are not available, or their classes differ.
    """
    return score(weights, _flat(overrides), split=split, device=device, accept_license=accept_license)


def predict(
    model: Any, images: Any, *, accept_license: bool = False, **options: Any
) -> "Prediction | Predictions":
    """Predict images.

    Args:
        model: a model as `load` gives it, or what `load` takes.
        images: a file, a Pillow image, an array (Hi, Wi, 3) or a tensor (3, Hi, Wi), or a list of them; a folder, a
            shell pattern.
        accept_license: accept a licence that forbids commercial use; once per licence.
        options: those of `tetravit predict` for such a model (`topk`, `threshold`, `window`, ...), `batch_size` and
            `device`.

    Returns:
        A prediction for a single image, a list of them for everything else. `.draw()` gives a Pillow image,
        `.to_dict()` plain data; a notebook shows the picture.

    Raises:
        ValueError: for weights or a single image that cannot be read, an unknown option or a value out of range.
    """
    loaded = load(model, accept_license=accept_license) if isinstance(model, str | Path) else model
    return predict_with(loaded, images, **options)


def _flat(table: Mapping[str, Any], above: str = "") -> list[str]:
    """Overrides as the command line writes them: section.key=value."""
    changes: list[str] = []
    for key, value in table.items():
        if isinstance(value, Mapping):
            changes += _flat(value, f"{above}{key}.")
        else:
            text = str(value) if isinstance(value, Path) else value
            changes.append(f"{above}{key}={json.dumps(text)}")
    return changes
