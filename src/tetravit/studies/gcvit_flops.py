"""Multiply-adds of GC ViT as this package counts them, beside those of the authors' table."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tetravit.studies.base import Row, Study, compared, verdicts
from tetravit.studies.parts.figures import bars

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The README of the authors' code: parameters in millions, FLOPs in G (multiply-adds).
README = {
    "gcvit_xxtiny": (12, 2.1),
    "gcvit_xtiny": (20, 2.6),
    "gcvit_tiny": (28, 4.7),
    "gcvit_tiny2": (34, 5.5),
    "gcvit_small": (51, 8.5),
    "gcvit_small2": (68, 10.7),
    "gcvit_base": (90, 14.8),
    "gcvit_large": (201, 32.6),
    "gcvit_large_384": (201, 120.4),
    "gcvit_large_512": (201, 245.0),
}
SPREAD = 0.1  # G; the table has one decimal


def measure(
    *,
    small: Annotated[bool, typer.Option("--small", help="The smallest model alone.")] = False,
    device: str = "auto",
    on_run: Callable[[str], object] = lambda text: None,
) -> Iterator[dict[str, Any]]:
    """One row per model. Source: the table in the README of the authors' code."""
    from tetravit.benchmark.flops import counts

    for name in list(README)[:1] if small else README:
        on_run(name)
        counted = counts(name)
        millions, giga = README[name]
        yield {
            "model": name,
            "side": counted.image_size,
            "params": counted.params,
            "params_expected_m": millions,
            **compared(counted.macs / 1e9, giga, SPREAD),
        }


def draw(rows: Sequence[Row]) -> "Figure":
    """Multiply-adds of each model as bars, those of the README as lines."""
    return bars(rows, lambda row: row["model"], "multiply-adds, G")


STUDIES = {
    "gcvit-flops": Study(
        "How many multiply-adds has each GC ViT, and where does the published table differ?",
        measure,
        {
            "model": lambda row: row["model"],
            "side": lambda row: row["side"],
            "parameters M": lambda row: f"{row['params'] / 1e6:.1f}",
            "published M": lambda row: row["params_expected_m"],
            **verdicts("G"),
        },
        source="the README of the authors' code; five of its rows do not follow from the models",
        expected="as that README has them, one decimal; five rows lie outside",
        needs="nothing; seconds, nothing is computed",
        small="a second",
        draw=draw,
    )
}
