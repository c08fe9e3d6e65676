"""The contract of a study: a question of the papers, answered with rows of figures by one command.

A declaration imports no torch, so that `tetravit study --help` is quick: `measure` imports what it needs.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = Mapping[str, Any]  # plain data: what becomes one JSON line
SMALL = "Not the paper's figure: the same question, in small."
UTILIZATION = 0.4  # of the peak rate that a cost assumes: optimistic
H100_FLOPS = 989e12  # bfloat16, dense: NVIDIA's data sheet


@dataclass(frozen=True)
class Study:
    """A row of the menu `STUDIES`: `tetravit study NAME`.

    question: one sentence, the help of the command.
    measure: returns the rows, or yields them as they are ready. Its keyword arguments with typer annotations are
    the options of the command; it also takes `device` (as in a recipe) and `on_run`, called with one line before
    each run. With a keyword `done`, rows of an earlier command by their "key", it yields those as they are: the
    command resumes. A key names everything that the figures of a row depend on.
    columns: of the printed table, heading to value of a row. Columns other than the first are right-aligned.
    source: table or figure, and the paper. expected: where the figures that rows are compared with are from, and how
    sure they are. needs: weights, data, hardware. small: what `--small` takes. weights: published ones, by name.
    flops: the operations of all rows, two per multiply-add, from the options of the command; None: seconds of any
    machine. draw: the figure of the rows.
    """

    question: str
    measure: Callable[..., Iterable[dict[str, Any]]]
    columns: Mapping[str, Callable[[Row], Any]]
    source: str = ""
    expected: str = ""
    needs: str = "nothing"
    small: str = ""
    flops: Callable[..., float] | None = None
    weights: Sequence[str] = field(default=())
    draw: "Callable[[Sequence[Row]], Figure] | None" = None


def compared(
    got: float, expected: float | None, spread: float, *, digits: int = 2, differs: str = ""
) -> dict[str, Any]:
    """A figure beside the published one: got, expected, difference, verdict.

    expected: None where nothing is published. spread: how far apart two measurements of the same may lie.
    differs: what of the protocol is not as published, so that the difference has no verdict.
    """
    if not math.isfinite(got):
        return {"got": None, "expected": expected, "difference": None, "verdict": "not finite"}
    got = round(got, digits)
    if expected is None:
        return {"got": got, "expected": None, "difference": None, "verdict": "no published figure"}
    difference = round(got - expected, digits)
    inside = abs(difference) <= spread + 1e-9
    verdict = f"within {spread:g}" if inside else f"outside {spread:g}"
    if differs:
        verdict = f"protocol differs: {differs}"
    return {"got": got, "expected": expected, "difference": difference, "verdict": verdict}


def verdicts(unit: str = "") -> dict[str, Callable[[Row], Any]]:
    """The columns of `compared`; `unit` is added to their headings."""
    tail = f" {unit}" if unit else ""
    return {
        f"got{tail}": lambda row: row["got"],
        f"expected{tail}": lambda row: row["expected"],
        "difference": lambda row: None if row["difference"] is None else f"{row['difference']:+g}",
        "verdict": lambda row: row["verdict"],
    }
