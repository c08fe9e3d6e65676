"""Time and memory of one image against its size: linear in the tokens for XCiT, towards quadratic for DeiT."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tetravit.studies.base import Row, Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MODELS = ("xcit_small_12_p16", "deit_small")
SIDES = (224, 320, 448, 640, 896)


def measure(
    *,
    models: Annotated[str, typer.Option(metavar="M,M,...", help="Models to compare.")] = ",".join(MODELS),
    sides: Annotated[str, typer.Option(metavar="N,N,...", help="Pixels a side.")] = ",".join(map(str, SIDES)),
    batch: Annotated[int, typer.Option(metavar="N", min=1, help="Images per call.")] = 1,
    rounds: Annotated[int, typer.Option(metavar="N", min=1, help="Each size is measured so often.")] = 3,
    small: Annotated[bool, typer.Option("--small", help="Tiny models at 64 to 256 pixels.")] = False,
    device: str = "auto",
    on_run: Callable[[str], object] = lambda text: None,
) -> Iterator[dict[str, Any]]:
    """One row per model and size; `slope`: of log time over log tokens, to the size before. Source: XCiT, Figure 2.

    Raises:
        ValueError: for sizes that are no numbers.
    """
    from tetravit.benchmark.speed import measure as measure_speed
    from tetravit.world import pick_device

    try:
        requested = [64, 128, 256] if small else [int(side) for side in sides.split(",")]
    except ValueError:
        raise ValueError(f"--sides takes numbers with commas between them; got {sides!r}.") from None
    names = ["xcit_nano_12_p16", "deit_tiny"] if small else [name.strip() for name in models.split(",")]
    before: dict[str, tuple[float, float]] = {}
    for side in requested:
        on_run(f"{side} pixels")
        rows = measure_speed(
            names, size=side, batch=batch, device=pick_device(device), rounds=rounds, seconds=0.1 if small else 0.5
        )  # fmt: skip
        for row in rows:
            tokens, seconds = (side / 16) ** 2, 1 / row.images_per_s
            slope = None
            if row.model in before:
                past_tokens, past_seconds = before[row.model]
                slope = math.log(seconds / past_seconds) / math.log(tokens / past_tokens)
            before[row.model] = (tokens, seconds)
            yield {
                "model": row.model, "side": side, "ms": 1000 * seconds, "peak_mib": row.peak_mib, "slope": slope,
            }  # fmt: skip


def draw(rows: Sequence[Row]) -> "Figure":
    """Milliseconds over the size, one curve per model, both axes logarithmic."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axes = figure.subplots()
    for name in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == name]
        axes.plot([row["side"] for row in own], [row["ms"] for row in own], marker="o", label=name)
    axes.set(xlabel="image side, pixels", ylabel="ms per image", xscale="log", yscale="log")
    axes.legend()
    return figure


STUDIES = {
    "xcit-resolution-cost": Study(
        "How do time and memory of an image grow with its size, for XCiT and for DeiT?",
        measure,
        {
            "model": lambda row: row["model"],
            "side": lambda row: row["side"],
            "ms per image": lambda row: f"{row['ms']:.1f}",
            "memory MiB": lambda row: f"{row['peak_mib']:.0f}",
            "slope": lambda row: None if row["slope"] is None else f"{row['slope']:.2f}",
        },
        source="the plots in the README of XCiT's authors: the slope of time over tokens is about 1",
        expected="a slope near 1 for XCiT, towards 2 for DeiT; times and memory of the plots are of a V100",
        needs="this machine, some minutes, nothing else running",
        small="half a minute: two small models",
        draw=draw,
    )
}
