"""Which window makes an LSA and a GSA together cheapest: the estimate of Section 3.2, swept and counted."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tetravit.studies.base import Row, Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIDES = (56, 28, 14, 224)  # of maps


def cost(side: int, window: int, width: int) -> float:
    """Multiply-adds of a local and a global attention, H^2 W^2 d / k^2 + k^2 H W d, of a square map."""
    tokens = side * side
    return width * (tokens * tokens / window**2 + window**2 * tokens)


def measure(
    *,
    width: Annotated[int, typer.Option(metavar="N", min=1, help="Channels.")] = 64,
    small: Annotated[bool, typer.Option("--small", help="The first stage alone.")] = False,
    device: str = "auto",
    on_run: Callable[[str], object] = lambda text: None,
) -> Iterator[dict[str, Any]]:
    """One row per side of a map: the cheapest window by the sweep, and by the formula. Source: Twins, Section 3.2."""
    for side in SIDES[:1] if small else SIDES:
        sweep = {window: cost(side, window, width) for window in range(1, side + 1)}
        best = min(sweep, key=lambda window: sweep[window])
        formula = math.sqrt(side)  # k1 k2 = sqrt(H W)
        yield {
            "side": side,
            "got": best,
            "expected": round(formula, 2),
            "difference": round(best - formula, 2),
            "verdict": "within 0.5" if abs(best - formula) <= 0.5 else "outside 0.5",
            "macs": sweep[best],
            "macs_of_7": sweep.get(7),
            "sweep": {str(window): value for window, value in sweep.items() if window <= 32},
        }


def draw(rows: Sequence[Row]) -> "Figure":
    """Cost over the side of the window, one curve per map."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axes = figure.subplots()
    for row in rows:
        windows = [int(window) for window in row["sweep"]]
        axes.plot(
            windows,
            [value / row["macs"] for value in row["sweep"].values()],
            label=f"{row['side']} x {row['side']}",
        )
    axes.set(xlabel="side of the window, tokens", ylabel="cost / least cost", yscale="log")
    axes.legend(title="map")
    return figure


STUDIES = {
    "twins-window": Study(
        "Which window makes local and global attention of Twins-SVT together cheapest?",
        measure,
        {
            "map": lambda row: f"{row['side']} x {row['side']}",
            "cheapest window": lambda row: row["got"],
            "sqrt(side)": lambda row: row["expected"],
            "verdict": lambda row: row["verdict"],
            "cost of 7": lambda row: (
                None if not row["macs_of_7"] else f"{row['macs_of_7'] / row['macs']:.2f}"
            ),
        },
        source="Twins (arXiv:2104.13840), Section 3.2: 7 for 56 x 56, 15 for 224 x 224",
        expected="the windows that the section names: 7 for 56 x 56, 15 for 224 x 224",
        needs="nothing; no time",
        small="a second",
        draw=draw,
    )
}
