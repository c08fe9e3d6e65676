"""Parameters and multiply-adds of XCiT with patches of 16 at 224 pixels and of 8 at 384 pixels."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tetravit.studies.base import Row, Study
from tetravit.studies.parts.figures import bars

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZES = ("nano_12", "tiny_12", "tiny_24", "small_12", "small_24", "medium_24", "large_24")
SIDES = {"p16": 224, "p8": 384}


def measure(
    *,
    small: Annotated[bool, typer.Option("--small", help="The smallest model alone.")] = False,
    device: str = "auto",
    on_run: Callable[[str], object] = lambda text: None,
) -> Iterator[dict[str, Any]]:
    """One row per size and patch. Source: the columns of XCiT, Table 1."""
    from tetravit.benchmark.flops import count

    for size in SIZES[:1] if small else SIZES:
        for patch, side in SIDES.items():
            name = f"xcit_{size}_{patch}"
            on_run(f"{name} at {side} pixels")
            counted = count(name, image_size=side)
            yield {"model": name, "side": side, "params": counted.params, "macs": counted.macs}


def draw(rows: Sequence[Row]) -> "Figure":
    """Multiply-adds of each model as bars, one panel per size of the images."""
    shown = [{**row, "got": row["macs"] / 1e9, "expected": None} for row in rows]
    return bars(
        shown, lambda row: row["model"], "multiply-adds, G", panel=lambda row: f"{row['side']} pixels"
    )


STUDIES = {
    "xcit-flops": Study(
        "How many multiply-adds has each XCiT at 224 and 384 pixels?",
        measure,
        {
            "model": lambda row: row["model"],
            "side": lambda row: row["side"],
            "parameters M": lambda row: f"{row['params'] / 1e6:.2f}",
            "multiply-adds G": lambda row: f"{row['macs'] / 1e9:.2f}",
        },
        source="the columns of XCiT (arXiv:2106.09681), Table 1; its figures are not repeated here: not verified",
        expected="nothing is compared: the table's figures are not verified",
        needs="nothing; seconds, nothing is computed",
        small="a second",
        draw=draw,
    )
}
