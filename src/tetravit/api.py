"""Train, evaluate, predict and explain from Python, for example in a notebook: the verbs of the command line."""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from tetravit.engine.log import Summary
from tetravit.explainers import Explanation
from tetravit.explainers import explain as explain_with
from tetravit.explainers.parts.explanation import PLAIN
from tetravit.models import load
from tetravit.predictors import predict as predict_with
from tetravit.recipe import Recipe, dump, find, loads
from tetravit.recipe import load as load_recipe
from tetravit.recipe_tables import as_overrides
from tetravit.runs import train as run
from tetravit.runs.evaluate import Result, Split
from tetravit.runs.evaluate import evaluate as score

EXPORTED = (".onnx", ".pt2", ".xml")  # extensions of exported files

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
        recipe: a name from `tetravit list recipes`, a TOML file, or a `Recipe`; None with `resume`: the recipe of
            that run.
        run_dir: the folder of the run; None: a new folder below `runs`.
        resume: the folder of a run to continue.
        dry_run: check everything and print the plan, without training.
        log: experiment trackers: "tensorboard", "wandb", "mlflow".
        overrides: changes to the recipe: epochs=5, optim={"lr": 1e-3}, **{"data.root": "images"}.

    Returns:
        The summary of the run; `summary.run_dir` is its folder.

    Raises:
        ValueError: in one line, for an unknown or impossible setting of the recipe.
    """
    resume = None if resume is None else os.path.expanduser(resume)
    changes = as_overrides(overrides)
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
    """Score weights on their own data set, or on other data.

    Args:
        weights: a weights file, a run folder, NAME.TAG of published weights.
        split: split of the data set.
        device: auto, cpu, cuda, cuda:N or mps.
        accept_license: accept a licence that forbids commercial use; once per licence.
        overrides: changes to the recipe of the weights: data={"root": "images"}.

    Raises:
        ValueError: if the weights or the data are not available, or their classes differ.
    """
    return score(weights, as_overrides(overrides), split=split, device=device, accept_license=accept_license)


def predict(
    model: Any, images: Any, *, accept_license: bool = False, trust: bool = False, **options: Any
) -> "Prediction | Predictions":
    """Predict images.

    Args:
        model: a model from `load`, or a source for `load`; an exported file.
        images: a file, a Pillow image, an array (Hi, Wi, 3) or a tensor (3, Hi, Wi), or a list of them; a folder, or
            a shell pattern.
        accept_license: accept a licence that forbids commercial use; once per licence.
        trust: allow an exported file that can hold code (.pt2 of torch and AOTInductor).
        options: options of `tetravit predict` for such a model (`topk`, `threshold`, `window`, ...), `batch_size` and
            `device`.

    Returns:
        A prediction for a single image, otherwise a list of predictions. `.draw()` returns a Pillow image,
        `.to_dict()` plain data; a notebook displays the picture.

    Raises:
        ValueError: for unreadable weights or a single unreadable image, an unknown option or a value out of range.
    """
    model = os.path.expanduser(model) if isinstance(model, str | Path) else model
    if isinstance(model, str) and Path(model).suffix in EXPORTED and Path(model).is_file():
        from tetravit.exports import load_program

        return predict_with(cast(Any, load_program(model, trust=trust)), images, **options)
    loaded = load(model, accept_license=accept_license) if isinstance(model, str) else model
    return predict_with(loaded, images, **options)


def explain(
    model: Any,
    image: Any = None,
    method: str = "gradcam",
    *,
    layer: str | int | None = None,
    head: int | None = None,
    query: tuple[float, float] | None = None,
    class_: int | str | None = None,
    size: int | Literal["own"] | None = None,
    accept_license: bool = False,
    **options: Any,
) -> Explanation:
    """Attention or attribution maps of a model.

    Args:
        model: a model from `load`, or a source for `load`. For an optimised model the plain model is explained.
        image: a file, a Pillow image, an array (Hi, Wi, 3) or a tensor (3, Hi, Wi); None for methods that use only
            weights.
        method: of `tetravit.explainers.EXPLAIN`: "class-attention", "rollout", "gradcam", ...
        layer: a module of the backbone, or its index among the method's layers; None: the method's default.
        head: one head of the maps; None: all.
        query: x, y of the pixel whose attention is shown.
        class_: a class by index or name; None: the predicted one.
        size: resize the short side to this many pixels without a crop, or "own" for the picture's size; None: the
            preprocessing of the weights, with its crop.
        accept_license: accept a licence that forbids commercial use; once per licence.
        options: of the method.

    Returns:
        `.maps` are records, `.draw()` returns a Pillow image, `.on_picture()` an array, `.to_dict()` plain data;
        `.save(folder)` writes the raw values.

    Raises:
        ValueError: in one line, for a method that does not apply to the model, an unknown layer, head, class or
            option, or a query outside the picture.
    """
    loaded = load(model, accept_license=accept_license) if isinstance(model, str | Path) else model
    explanation = explain_with(
        loaded, image, method, layer=layer, head=head, query=query, class_=class_, size=size, **options
    )
    if PLAIN in explanation.notes:
        warnings.warn(PLAIN, stacklevel=2)
    return explanation
