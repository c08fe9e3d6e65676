"""The contract of a study: a question of the papers, answered with rows of figures by one command.

A declaration imports no torch, so that `tetravit study --help` is quick: `measure` imports what it needs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]  # plain data: what becomes one JSON line


@dataclass(frozen=True)
class Study:
    """A row of the menu `STUDIES`: `tetravit study NAME`.

    question: one sentence, the help of the command.
    measure: returns the rows. Its keyword arguments with typer annotations are the options of the command; it also
    takes `device` (as in a recipe) and `on_run`, called with one line before each run.
    columns: of the printed table, heading to value of a row. Columns other than the first are right-aligned.

    Source: `measure` names the table or figure of the paper in its docstring.
    """

    question: str
    measure: Callable[..., list[dict[str, Any]]]
    columns: Mapping[str, Callable[[Row], Any]]
