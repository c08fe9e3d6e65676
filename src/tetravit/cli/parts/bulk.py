"""Shared by `embed` and `predict` for many images: `--data DIR --to OUT --engine ENGINE`."""

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from tetravit.bulk import ENGINES, Settings, make_plan
from tetravit.cli.base import progress_bar, say
from tetravit.registry import pick, suggestion

Data = Annotated[
    str | None,
    typer.Option(
        metavar="DIR", help="Many images: a folder, or shards, local or in a bucket; results go to --to."
    ),
]
To = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="With --data: folder of the results, one .parquet per shard or per 1000 files."
    ),
]
EngineName = Annotated[str, typer.Option(metavar="NAME", help=f"With --data: {', '.join(ENGINES)}.")]
Processes = Annotated[
    int, typer.Option(metavar="N", min=0, help="With --data: parallel workers; 0: chosen by the engine.")
]
Unit = Annotated[int, typer.Option(metavar="N", min=1, help="With --data: files per unit.")]
EngineOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--engine-option",
        metavar="KEY=VALUE",
        help="slurm: tasks, partition, gpus, ...; ray: address, cpus, gpus.",
    ),
]
Only = Annotated[
    str | None, typer.Option(metavar="I/N", help="With --data: every N-th unit from the I-th on, from 0.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="With --data: show what would run; run nothing.")]


def run_bulk(
    verb: Literal["embed", "predict"],
    model: str,
    data: str,
    to: Path | None,
    *,
    engine: str,
    processes: int,
    unit: int,
    engine_options: list[str] | None,
    only: str | None,
    dry_run: bool,
    batch: int,
    device: str,
    accept_license: bool,
    options: dict[str, Any] | None = None,
) -> None:
    """Run the unfinished units of a plan.

    Raises:
        ValueError: for an unknown engine or option, or results of another job.
    """
    row = pick(ENGINES, engine, "engine")
    if to is None:
        raise ValueError(f"{verb} --data writes into a folder: --to DIR.")
    given = {}
    for text in engine_options or ():
        key, _, value = text.partition("=")
        if key not in row.options:
            raise ValueError(f"The engine {engine} has no option {key!r}.{suggestion(key, row.options)}")
        given[key] = value
    _needs_pyarrow()
    plan = make_plan(
        verb, model, data, to, batch=batch, unit=unit, options=options, accept_license=accept_license
    )
    todo = plan.unfinished(only)
    if not todo:
        say(f"All {len(plan.units)} units of {to} are finished.")
        return
    if dry_run and engine != "slurm":
        say(f"{len(todo)} of {len(plan.units)} units are to be done: {todo[0].name} to {todo[-1].name}.")
        return
    settings = Settings(processes, device, given, dry_run, _command(only))
    with progress_bar("units") as bar:
        text = row.run(plan, todo, settings, bar)
    say(text or f"Wrote {len(todo)} of {len(plan.units)} units to {to}.")


def _needs_pyarrow() -> None:
    from importlib.util import find_spec

    if find_spec("pyarrow") is None:
        raise ValueError("Results are tables of parquet: pip install 'tetravit[parquet]'.")


def _command(only: str | None) -> tuple[str, ...]:
    """This command line without its engine options, for scripts that repeat it."""
    words, kept, skip = sys.argv[1:], [sys.executable, "-m", "tetravit"], False
    for word in words:
        if skip:
            skip = False
        elif word in ("--engine", "--engine-option", "--only"):
            skip = True
        elif not word.startswith(("--engine=", "--engine-option=", "--only=")) and word != "--dry-run":
            kept.append(word)
    return tuple(kept)
