"""The gates of ConViT's heads: the share of position in each head, from the weights alone (Figures 6, 14 and 17)."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tetravit.studies.base import Row, Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WEIGHTS = ("convit_tiny.in1k", "convit_small.in1k", "convit_base.in1k")
# Printed above the maps of Figures 7, 16 and 17; layers count from 1. Two decimals, so within 0.01.
PRINTED = {
    ("convit_tiny", 2): (0.00, 0.09, 0.51, 0.73),
    ("convit_tiny", 10): (0.00,) * 4,
    ("convit_small", 1): (0.01, 0.52, 0.01, 0.00, 0.04, 0.92, 0.07, 0.01, 0.07),
    ("convit_small", 4): (0.00, 0.82, 0.03, 0.82, 0.14, 0.84, 0.75, 0.00, 0.34),
    ("convit_small", 7): (0.15, 0.00, 0.59, 0.00, 0.04, 0.02, 0.04, 0.00, 0.00),
    ("convit_small", 10): (0.00,) * 9,
}
SPREAD = 0.01


def measure(
    *,
    weights: Annotated[
        str, typer.Option(metavar="W,W,...", help="Published names, files or run folders.")
    ] = ",".join(WEIGHTS),
    small: Annotated[
        bool, typer.Option("--small", help="An untrained convit_tiny: every gate is 0.731.")
    ] = False,
    device: str = "auto",
    on_run: Callable[[str], object] = lambda text: None,
) -> Iterator[dict[str, Any]]:
    """One row per layer: the gate of each head and their mean. Source: ConViT, Figures 6, 14 and 17.

    The order of heads in the published files need not be that of the figures: sorted gates are compared.

    Raises:
        ValueError: for weights of another family.
    """
    from tetravit.models import create_model, load

    for source in ["convit_tiny, untrained"] if small else weights.split(","):
        model: Any = create_model("convit_tiny", image_size=32) if small else load(source.strip())
        blocks = [
            block.attn for block in getattr(model.backbone, "blocks", ()) if hasattr(block.attn, "gates")
        ]
        if not blocks:
            raise ValueError(f"{source.strip()} has no gates: ConViT has them.")
        for layer, attention in enumerate(blocks, 1):
            gates = [round(g, 4) for g in attention.gates().tolist()]
            printed = None if small else PRINTED.get((model.name, layer))
            yield {
                "weights": source.strip(),
                "layer": layer,
                "gates": gates,
                "mean": sum(gates) / len(gates),
                "expected": None if printed is None else sorted(printed),
                "verdict": _verdict(gates, printed),
            }


def _verdict(gates: Sequence[float], printed: Sequence[float] | None) -> str:
    if printed is None:
        return "no published figure"
    far = max(abs(a - b) for a, b in zip(sorted(gates), sorted(printed), strict=True))
    return f"within {SPREAD:g}" if far <= SPREAD + 0.005 else f"outside {SPREAD:g}: {far:.2f} apart"


def draw(rows: Sequence[Row]) -> "Figure":
    """Gates over the layers, a point per head, the mean as a line."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row["weights"] for row in rows))
    figure = Figure(figsize=(3.4 * len(names), 3), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        own = [row for row in rows if row["weights"] == name]
        for row in own:
            axes.scatter([row["layer"]] * len(row["gates"]), row["gates"], s=12, color="tab:blue", alpha=0.6)
        axes.plot([row["layer"] for row in own], [row["mean"] for row in own], color="black")
        axes.set(title=name, xlabel="layer", ylabel="gate", ylim=(-0.02, 1.02))
    return figure


STUDIES = {
    "convit-gates": Study(
        "What share do positions have in ConViT's heads, layer by layer?",
        measure,
        {
            "weights": lambda row: row["weights"],
            "layer": lambda row: row["layer"],
            "mean gate": lambda row: f"{row['mean']:.3f}",
            "gates, sorted": lambda row: " ".join(f"{g:.2f}" for g in sorted(row["gates"])),
            "expected": lambda row: (
                None if not row["expected"] else " ".join(f"{g:.2f}" for g in row["expected"])
            ),
            "verdict": lambda row: row["verdict"],
        },
        source="ConViT (arXiv:2103.10697v2), Figures 6, 14 and 17; which runs the published files are is not known",
        expected="as printed above the maps of Figures 7, 16 and 17; compared as sets, as heads may be in another"
        " order; which printed row is which layer is sure for the first and the last alone",
        needs="published weights; no images; seconds",
        small="a second: an untrained convit_tiny, whose gates are all 0.731",
        weights=WEIGHTS,
        draw=draw,
    )
}
