"""Convert a self-supervised run to a checkpoint of the DINO code, for evaluation or training there."""

import json
from pathlib import Path

import torch

from tetravit.engine.checkpoint import Checkpoints
from tetravit.files import read_json
from tetravit.models import create_model
from tetravit.recipe import load
from tetravit.weights import LAYOUTS
from tetravit.weights.read import family_of
from tetravit.weights.selfsup import write_full


def write_authors(run: str | Path, out: str | Path) -> int:
    """Write the newest checkpoint of a `dino` run as the authors' checkpoint.pth.

    It contains student, teacher, both projection heads, the centre and the next epoch; no optimizer.

    Returns:
        The number of completed steps.

    Raises:
        ValueError: if the folder is not such a run, or has no checkpoint.
        BadCheckpoint: if no checkpoint is intact.
    """
    folder = Path(run)
    if not (folder / "recipe.toml").is_file() or not (folder / "run.json").is_file():
        raise ValueError(f"{folder} is not the folder of a run: it has no recipe.toml and run.json.")
    recipe = load(folder / "recipe.toml")
    if recipe.task.name != "dino":
        raise ValueError(
            f"{folder} is a run of the task {recipe.task.name!r}; only a self-supervised run, of the task 'dino',"
            " has a teacher and a centre."
        )
    newest = Checkpoints(folder, run_id=read_json(folder / "run.json")["id"]).latest()
    if newest is None:
        raise ValueError(f"{folder} has no checkpoint yet.")
    with torch.device("meta"):
        model = create_model(recipe.model.name, num_classes=0, **recipe.model.options)
    state = newest.tensors("model")
    names = LAYOUTS[family_of(model)]["official"]
    batch_norm = any(name.endswith("running_mean") for name in state)
    write_full(out, state, names, epoch=_epoch(folder, newest.step), batch_norm=batch_norm)
    return newest.step


def _epoch(folder: Path, done: int) -> int:
    """The number of complete epochs in `done` steps, from the log of the run; 0 without a log."""
    lines = (folder / "metrics.jsonl").read_text().splitlines() if (folder / "metrics.jsonl").exists() else []
    rows = [row for row in map(json.loads, lines) if row.get("epoch")]
    return int(done * rows[-1]["epoch"] / rows[-1]["step"] + 1e-6) if rows else 0
