"""A self-supervised run as a file of the DINO code, which its scripts evaluate and continue from."""

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
    """Write the newest checkpoint of a run of the task `dino` as the authors' checkpoint.pth.

    It holds student, teacher, both projection heads, the centre and the number of the next epoch; no optimizer.

    Returns:
        The steps that were done.

    Raises:
        ValueError: if the folder holds no such run, or no checkpoint of it.
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
    """The number of whole epochs in `done` steps, by the log of the run; 0 where nothing is logged."""
    lines = (folder / "metrics.jsonl").read_text().splitlines() if (folder / "metrics.jsonl").exists() else []
    rows = [row for row in map(json.loads, lines) if row.get("epoch")]
    return int(done * rows[-1]["epoch"] / rows[-1]["step"] + 1e-6) if rows else 0
