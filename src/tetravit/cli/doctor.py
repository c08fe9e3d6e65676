"""`tetravit doctor`: check the installation."""

from dataclasses import asdict
from typing import Annotated

import typer

from tetravit.cli.base import print_rows, print_table, say


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line.")] = False,
) -> None:
    """Print versions, devices, threads, extras and caches; exit code 1 if a problem is detected."""
    from tetravit.doctor import examine

    lines = examine()
    if as_json:
        print_rows(asdict(line) for line in lines)
    else:
        print_table(["", ""], [[line.item, line.value] for line in lines])
    wrong = [line for line in lines if line.problem]
    for line in wrong:
        say(f"{line.item} {line.value}: {line.problem}." + (f" Cure: {line.cure}" if line.cure else ""))
    if wrong:
        raise typer.Exit(1)
    if not as_json:
        say("No problems.")


VERBS = {"doctor": doctor}
