"""The folder of a run, and its files.

RUN/recipe.toml the complete recipe, defaults included; repeats the run
RUN/run.json version, commit, machine, command line, result
RUN/metrics.jsonl means and scores, identical in every run of the recipe; timing.jsonl: timings
RUN/events.jsonl rollbacks and collapses, if any
RUN/metrics.csv both as a table; trackers.json: the experiment trackers of the run
RUN/checkpoints/ for resuming
RUN/best.safetensors weights with the best score; evaluation.json: its findings
RUN/last.safetensors weights of the last step
RUN/report.html        curves and pictures
"""

import importlib.util
import json
import os
import platform
import shlex
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from tetravit.engine import provenance
from tetravit.engine.checkpoint import Checkpoints, size_mib
from tetravit.engine.saving import FolderLost
from tetravit.files import check_room, read_json, replace_file, write_json
from tetravit.recipe import Recipe, dump
from tetravit.runs.build import Objects
from tetravit.weights.fileformat import Header, package_version, save
from tetravit.world import World

# Format version of a run folder: version 1 had no entry for it; until 2, random numbers depended on the number of
# processes.
LAYOUT = 3
UNKNOWN = 0.5  # threshold of a class without validation images


def fresh(recipe: Recipe) -> Path:
    """An unused name below `runs`."""
    name = f"{datetime.now():%Y-%m-%d}_{recipe.model.name}_{recipe.data.name}"
    folders = (Path("runs") / (name if i == 1 else f"{name}_{i}") for i in range(1, 10_000))
    return next(folder for folder in folders if not folder.exists())


def check_disk(folder: Path, objects: Objects) -> None:
    """Check free disk space for the run, before anything is written."""
    if objects.world.is_main:
        state = objects.task.state_dict()
        per_step = (3 + (objects.ema is not None)) * size_mib(state)
        check_room(folder, (objects.recipe.run.keep + 1) * per_step + 2 * size_mib(state))


def opened(folder: Path, recipe: Recipe, world: World) -> dict[str, Any]:
    """Write run.json and then recipe.toml, which marks a run folder; returns the content of run.json."""
    path = folder / "run.json"
    kept = read_json(path)
    record = {
        "id": kept.get("id", uuid.uuid4().hex),
        "layout": LAYOUT,
        "version": package_version(),
        **provenance.commit(),
        "python": platform.python_version(),
        "torch": provenance.torch_version(),
        "device": provenance.device_name(world.device),
        "host": platform.node(),
        "world_size": world.size,
        "seed": recipe.run.seed,
        "command": shlex.join(sys.argv),
        "start": kept.get("start", now()),
        "resumed": [*kept.get("resumed", []), *([now()] if kept else [])],
        "status": "running",
    }
    write_json(path, record)
    replace_file(folder / "recipe.toml", dump(recipe).encode())
    if folder.parent.name == "runs":
        provenance.point_latest(folder)
    return record


def keep_best(folder: Path, objects: Objects, record: dict[str, Any], findings: dict[str, Any]) -> None:
    """Write the weights with the best score so far, and the findings of their evaluation."""
    source = f"step {record['step']}, {record['weights']} weights"
    write_weights(folder, objects, "best.safetensors", source, thresholds=_thresholds(findings))
    table = {**record, "class_names": objects.info.class_names, **findings}
    replace_file(folder / "evaluation.json", json.dumps(table).encode())


def _thresholds(findings: Mapping[str, Any]) -> tuple[float, ...]:
    """Per-class thresholds from an evaluation; () for single-label sets."""
    rows = findings.get("classes") or []
    if not rows or any("threshold" not in row for row in rows):
        return ()
    return tuple(UNKNOWN if row["threshold"] is None else float(row["threshold"]) for row in rows)


def write_weights(
    folder: Path, objects: Objects, name: str, source: str, *, thresholds: tuple[float, ...] = ()
) -> None:
    """Write the network that the task saves, with the header that rebuilds it."""
    recipe, task = objects.recipe, objects.task
    network = task.weights()
    classes = int(getattr(network, "num_classes", objects.info.num_classes))
    options = {**getattr(network, "options", {}), **recipe.model.options}
    if task.model_kind == "classify":
        options["image_size"] = recipe.data.image_size
    header = Header(
        model=recipe.model.name,
        options={key: value for key, value in options.items() if key != "drop_path"},
        task=task.model_kind,
        head=getattr(network, "head_name", None),
        num_classes=classes,
        class_names=objects.info.class_names if classes else (),
        preprocess=recipe.data.preprocess,
        recipe=dump(recipe),
        source=f"trained here: {source}",
        thresholds=thresholds,
    )
    save(folder / name, network.state_dict(), header)


def rescue(folder: Path, objects: Objects, run_id: str, lost: FolderLost, continued_by: str) -> ValueError:
    """Save weights and checkpoint in a fallback folder; returns an error that names it.

    Uses the first writable one of: the folder in TETRAVIT_FALLBACK, the home directory, the working directory, the
    system's temporary folder.
    """
    gone = not folder.exists()
    state = "has vanished" if gone else f"cannot be written ({lost.reason})"
    cure = "Restore the folder" if gone else "Make it writable"
    named = os.environ.get("TETRAVIT_FALLBACK")
    places = [*([Path(named)] if named else []), Path.home(), Path.cwd(), Path(tempfile.gettempdir())]
    for place in places:
        fallback = place / "tetravit-fallback" / f"{folder.name}-{run_id[:8]}"
        try:
            fallback.mkdir(parents=True, exist_ok=True)
            write_weights(fallback, objects, "last.safetensors", f"step {lost.step}, raw weights")
            if lost.tensors:
                kept = Checkpoints(fallback, run_id=run_id, on_full="stop")
                kept.prepare()
                kept.save(lost.step, lost.tensors, lost.facts)
        except OSError:
            continue
        return ValueError(
            f"The run folder {folder} {state}; the weights of step {lost.step} are in {fallback}. {cure} and"
            f" continue with: {continued_by}"
        )
    return ValueError(
        f"The run folder {folder} {state}; no other folder takes the weights of step {lost.step}."
    )


def write_report(folder: Path, warn: Callable[[str], object]) -> bool:
    """Write report.html; an error in it does not fail the run."""
    if importlib.util.find_spec("tetravit.report") is None:
        return False
    try:
        importlib.import_module("tetravit.report").write(folder)
    except Exception as error:
        warn(f"report.html was not written: {type(error).__name__}: {error}")
        return False
    return True


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
