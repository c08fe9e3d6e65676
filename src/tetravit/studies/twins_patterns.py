"""Patterns of local and global blocks in Twins-SVT: parameters and multiply-adds of Table 5."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tetravit.studies.base import Row, Study, compared, verdicts
from tetravit.studies.parts.figures import bars

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Pattern of each stage -> parameters in millions, multiply-adds in G, top-1 in percent, as printed.
TABLE_5: dict[tuple[str, ...], tuple[float, float, float]] = {
    ("L", "L", "L"): (8.8, 2.2, 76.9),
    ("L", "LLG", "LLG", "G"): (23.5, 2.8, 81.5),
    ("L", "LG", "LG", "G"): (24.1, 2.8, 81.7),
    ("L", "L", "L", "G"): (22.2, 2.9, 80.5),
}
SPREAD = 0.15  # G, and M: the table has one decimal
BLOCKS = {"dims": (64, 128, 256, 512), "depths": (2, 2, 10, 4), "num_heads": (2, 4, 8, 16)}


def measure(
    *,
    small: Annotated[bool, typer.Option("--small", help="The published model's pattern alone.")] = False,
    device: str = "auto",
    on_run: Callable[[str], object] = lambda text: None,
) -> Iterator[dict[str, Any]]:
    """One row per pattern. Source: Twins, Table 5.

    A pattern of three stages has no deepest stage: its model is counted with the stages that it has.
    """
    import torch

    from tetravit.benchmark.flops import count_macs
    from tetravit.models import create_model

    for pattern, (millions, giga, top1) in TABLE_5.items():
        if len(pattern) == 3 or (small and pattern != ("L", "LG", "LG", "G")):
            continue
        on_run(f"({', '.join(pattern)})")
        with torch.device("meta"):
            model = create_model("twins_svt_small", pattern=pattern).eval()
            macs = count_macs(model, torch.zeros(1, 3, 224, 224))
        params = sum(p.numel() for p in model.parameters())
        yield {
            "pattern": ", ".join(pattern),
            "params": params,
            "params_expected_m": millions,
            "top1_published": top1,
            **compared(macs / 1e9, giga, SPREAD),
        }


def draw(rows: Sequence[Row]) -> "Figure":
    """Multiply-adds of each pattern as bars, those of the table as lines."""
    return bars(rows, lambda row: f"({row['pattern']})", "multiply-adds, G", digits=2)


STUDIES = {
    "twins-patterns": Study(
        "What do the patterns of local and global blocks of Twins-SVT cost?",
        measure,
        {
            "pattern": lambda row: row["pattern"],
            "parameters M": lambda row: f"{row['params'] / 1e6:.1f}",
            "published M": lambda row: row["params_expected_m"],
            **verdicts("G"),
            "published top-1 %": lambda row: row["top1_published"],
        },
        source="Twins (arXiv:2104.13840), Table 5, but for its row of three stages",
        small="a second",
        draw=draw,
        expected="parameters and multiply-adds as printed in Table 5, one decimal",
        needs="nothing for the cost; training (recipe twins/imagenet, model.options.pattern) for the accuracy",
    )
}
