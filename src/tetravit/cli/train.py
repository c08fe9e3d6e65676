"""`tetravit train`: run a recipe, or continue a run."""

from pathlib import Path
from typing import Annotated

import typer

from tetravit.cli.base import check_recipe, complete_recipes, say


def train(
    recipe: Annotated[
        str | None,
        typer.Argument(
            help="A name from `tetravit list recipes`, or a TOML file.", autocompletion=complete_recipes
        ),
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Argument(metavar="[SECTION.KEY=VALUE]...", help="Changes to the recipe: optim.lr=1e-3"),
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Continue the run in this folder, bitwise identically.")
    ] = None,
    into: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of the run; default: a new folder in runs."),
    ] = None,
    log: Annotated[
        str,
        typer.Option(metavar="NAMES", help="Experiment trackers, comma-separated: tensorboard,wandb,mlflow."),
    ] = "",
    go_on: Annotated[
        bool,
        typer.Option(
            "--continue",
            help="With --into DIR: start the run, or continue it. For schedulers and restarts.",
        ),
    ] = False,
    slurm: Annotated[
        str | None,
        typer.Option(
            metavar="NAME=VALUE,...",
            help="Submit the run as a SLURM job: nodes=2,gpus=8,partition=a100, and other options of sbatch;"
            " --dry-run prints the script.",
        ),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="With --resume: never fall back to an older checkpoint.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and print the whole recipe, without training.")
    ] = False,
) -> None:
    """Train a recipe, or continue a run."""
    changes = list(changes or [])
    if recipe is not None and resume is not None and "=" in recipe:
        changes.insert(0, recipe)  # `--resume RUN data.workers=4` names no recipe
        recipe = None
    if recipe is None and resume is None:
        raise ValueError("train takes a recipe, or --resume RUN. `tetravit list recipes` shows them.")
    if strict and resume is None and not go_on:
        raise ValueError("--strict goes with --resume RUN, or with --continue.")
    if go_on and (recipe is None or into is None or resume is not None):
        raise ValueError(
            "--continue goes with a recipe and its folder: tetravit train RECIPE --into RUN --continue."
        )

    if recipe is not None:
        check_recipe(recipe)  # before the import of torch
    from tetravit.engine.signals import Interrupted, Signals, leave_code
    from tetravit.recipe import dump, find, load
    from tetravit.runs import train as run

    chosen = None
    if recipe is not None:
        chosen = load(find(recipe), changes)
    elif changes and resume is not None:
        chosen = load(resume / "recipe.toml", changes)
    if slurm is not None:
        if chosen is None or recipe is None:
            raise ValueError("--slurm goes with a recipe: tetravit train RECIPE --slurm nodes=1,gpus=8.")
        from tetravit.runs.folder import fresh
        from tetravit.runs.slurm import options, script, submit

        folder = into or fresh(chosen)
        name = str(Path(recipe).absolute()) if recipe.endswith(".toml") else recipe
        trackers = ["--log", log] if log else []
        text = script([name, *changes, *trackers], folder, options(slurm))
        if dry_run:
            print(text, end="")
        else:
            say(submit(text, folder))
        return
    if dry_run and chosen is not None:
        print(dump(chosen), end="")
    # SIGINT keeps Python's handler until there is something to save.
    with Signals(("SIGTERM", "SIGUSR1"), ignore_after=True):
        try:
            run(
                chosen,
                into,
                resume=resume,
                continuing=go_on,
                on_corrupt="stop" if strict else "previous",
                dry_run=dry_run,
                log=[name.strip() for name in log.split(",") if name.strip()],
            )
        except Interrupted as stop:
            say(str(stop))
            raise typer.Exit(leave_code()) from None


VERBS = {"train": train}
