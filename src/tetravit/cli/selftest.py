"""`tetravit selftest`: promises of this package, checked on your own machine."""

import shutil
from pathlib import Path
from typing import Annotated

import typer

from tetravit.cli.base import Group, say


def resume(
    folder: Annotated[
        Path, typer.Option("--dir", metavar="DIR", help="A new folder, on the disk that your runs go to.")
    ] = Path("tetravit-selftest"),
    kills: Annotated[int, typer.Option(min=1, help="How often the run is killed.")] = 10,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the folder behind.")] = False,
) -> None:
    """Kill a small run again and again, continue it, and compare its end with that of an undisturbed one."""
    if folder.exists():
        raise ValueError(f"{folder} exists already; --dir takes a new folder.")
    from tetravit.runs.storm import storm

    result = storm(folder, kills, say)
    print(result)
    if result.passed and not keep:
        shutil.rmtree(folder)
    if not result.passed:
        raise typer.Exit(1)


GROUPS = {"selftest": Group("Check promises of this package on your machine.", {"resume": resume})}
