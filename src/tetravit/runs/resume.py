"""Start or resume a run, and check which keys may change on resuming."""

import os
import shlex
import tomllib
from pathlib import Path
from typing import Any

from tetravit.files import read_json
from tetravit.recipe import Recipe, load
from tetravit.runs.folder import LAYOUT, fresh

# Keys that may change when a run is resumed, because they affect results only by rounding; on_bad, because a run ends
# at the first image that it concerns. The path of a teacher may change: a checkpoint stores its weights' checksum.
FREE = {
    "data": {"root", "train", "val", "test", "workers", "val_batch_size", "on_bad", "bad_limit"},
    "task": {"teacher", "teacher_weights"},
    "run": None,
}
FIXED = {"run": {"seed"}}
LENGTHS = ("epochs", "steps")
UNBOUNDED = ("constant", "steps")  # schedules independent of the length of the run


def to_resume(folder: str | Path) -> Path | None:
    """The folder, if it is a run that can continue; None: a new run may start there."""
    place = Path(os.path.expanduser(folder))
    return place if (place / "recipe.toml").exists() else None


def choose(
    recipe: Recipe | None, run_dir: str | Path | None, resume: str | Path | None
) -> tuple[Recipe, Path]:
    """The recipe and the folder of a run.

    Raises:
        ValueError: if they are inconsistent, or the run cannot be resumed.
    """
    if resume is None:
        if recipe is None:
            raise ValueError("train takes a recipe, or a run to resume; got neither.")
        folder = Path(os.path.expanduser(run_dir)) if run_dir is not None else fresh(recipe)
        if (folder / "recipe.toml").exists():
            raise ValueError(
                f"{folder} already holds a run. Continue it with --resume {folder} or --continue, or take another"
                " folder."
            )
        return recipe, folder
    folder = Path(os.path.expanduser(resume))
    if run_dir is not None and Path(os.path.expanduser(run_dir)) != folder:
        raise ValueError(f"A resumed run stays in its folder {folder}; got {run_dir}.")
    if not (folder / "recipe.toml").is_file() or not (folder / "run.json").is_file():
        raise ValueError(f"{folder} is not the folder of a run: it has no recipe.toml and run.json.")
    if read_json(folder / "run.json").get("layout") != LAYOUT:
        raise ValueError(
            f"{folder} was written by another version of tetravit, whose runs cannot be resumed with this one;"
            f" start a new run from its weights: model.weights={shlex.quote(str(folder / 'last.safetensors'))}"
        )
    kept = load_kept(folder)
    if recipe is not None:
        if "data.shuffle" not in recipe.origins:
            recipe = recipe.model_copy(
                update={"data": recipe.data.model_copy(update={"shuffle": kept.data.shuffle})}
            )
        check_same(kept, recipe, folder)
    return recipe or kept, folder


def load_kept(folder: Path) -> Recipe:
    """The recipe of a run. A run from before `data.shuffle` existed keeps its original order."""
    file = folder / "recipe.toml"
    older = "shuffle" not in tomllib.loads(file.read_text(encoding="utf-8")).get("data", {})
    return load(file, ["data.shuffle=table"] if older else [])


def check_same(kept: Recipe, wanted: Recipe, folder: Path) -> None:
    """Raises: ValueError if a resumed run would change a key that affects its results."""
    old, new = _flat(kept.model_dump(mode="json")), _flat(wanted.model_dump(mode="json"))
    longer = _may_grow(kept, wanted)
    for path in sorted(old.keys() | new.keys()):
        section, _, key = path.partition(".")
        free = FREE.get(section, set())
        if free is None:
            free = {key} - FIXED.get(section, set())
        if old.get(path) == new.get(path) or key in free or (longer and path in LENGTHS):
            continue
        line = f"A resumed run keeps {path}: it is {old.get(path)!r}; got {new.get(path)!r}."
        if path in LENGTHS:
            recipe, weights = (
                shlex.quote(str(folder / name)) for name in ("recipe.toml", "last.safetensors")
            )
            given = next(f"{name}={new[name]}" for name in LENGTHS if new.get(name))
            line += (
                f" The schedule {kept.optim.schedule!r} ends there. A new run from its weights:"
                f" tetravit train {recipe} {given} model.weights={weights}"
            )
        raise ValueError(line)


def _may_grow(kept: Recipe, wanted: Recipe) -> bool:
    """Whether the run may be extended: no setting of completed steps depends on its length."""
    unchanged = (
        kept.optim.schedule in UNBOUNDED and not kept.optim.schedules and not kept.optim.cooldown_epochs
    )
    supervised = kept.task.name in ("classify", "detect", "segment")
    lengths = [(kept.epochs, wanted.epochs), (kept.steps, wanted.steps)]
    grows = all((a is None) == (b is None) and (a or 0) <= (b or 0) for a, b in lengths)
    return unchanged and supervised and grows


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
