"""`tetravit selftest`: test guarantees of this package on your machine."""

import shutil
from pathlib import Path
from typing import Annotated

import typer

from tetravit.cli.base import Group, say


def resume(
    folder: Annotated[
        Path, typer.Option("--dir", metavar="DIR", help="A new folder, on the disk used for runs.")
    ] = Path("tetravit-selftest"),
    kills: Annotated[int, typer.Option(min=1, help="Number of kills.")] = 10,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the folder.")] = False,
) -> None:
    """Kill and resume a small run repeatedly, and compare its result with that of an uninterrupted run."""
    if folder.exists():
        raise ValueError(f"{folder} exists already; --dir takes a new folder.")
    from tetravit.runs.storm import storm

    result = storm(folder, kills, say)
    print(result)
    if result.passed and not keep:
        shutil.rmtree(folder)
    if not result.passed:
        raise typer.Exit(1)


GROUPS = {"selftest": Group("Test guarantees of this package on your machine.", {"resume": resume})}
