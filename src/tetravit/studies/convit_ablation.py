"""What ConViT's gates, its convolutional start and its trained positional attention contribute (Table 3)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tetravit.studies.base import Row as Line
from tetravit.studies.base import Study
from tetravit.studies.parts.figures import bars
from tetravit.studies.parts.small import MODELS
from tetravit.studies.parts.training import (
    TRAIN_IMAGES,
    Commands,
    DataRoot,
    Epochs,
    Only,
    Row,
    Runs,
    Seeds,
    Settings,
    Small,
    chosen_rows,
    measure_rows,
    shares,
    training_columns,
    training_flops,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FROZEN, RANDOM, KEPT = {"gate": "frozen"}, {"local_init": False}, {"freeze_gpsa": True}
# Row of Table 3: what differs from row a, options, top-1 in percent on all images and on 10 % of each class.
TABLE_3: dict[str, tuple[str, dict[str, Any], float, float]] = {
    "a": ("ConViT", {}, 82.2, 59.7),
    "b": ("gates frozen at 1/2", FROZEN, 82.0, 57.4),
    "c": ("random start", RANDOM, 81.4, 56.9),
    "d": ("gates frozen, random start", {**FROZEN, **RANDOM}, 81.6, 54.6),
    "e": ("DeiT: no positional attention", {}, 79.1, 47.8),
    "f": ("gates and positional attention frozen", {**FROZEN, **KEPT}, 78.6, 54.3),
    "g": ("gates and positional attention frozen, random start", {**FROZEN, **RANDOM, **KEPT}, 73.7, 44.8),
}
EPOCHS, SMALL_EPOCHS = 300, 5
BOTH = "1.0,0.1"  # shares of each class in the table
DEIT = ["model.name=deit_small", "model.options.dim=576", "model.options.num_heads=9", "optim.release=deit"]


def table(only: str, fractions: str) -> list[Row]:
    """The rows of Table 3 as runs, all of one share of the images before the next."""
    rows = []
    for share in shares(fractions):
        for name in chosen_rows(only, tuple(TABLE_3)):
            about, options, whole, tenth = TABLE_3[name]
            small = "deit_tiny" if name == "e" else "convit_tiny"
            model = DEIT if name == "e" else ["model.name=convit_small_plus", *_set(options)]
            rows.append(
                Row(
                    f"{name}_{share:g}",
                    {"row": name, "model": about},
                    "convit/sample_efficiency",
                    [*model, "optim.lr=4e-4", "data.batch_size=512", f"data.options.fraction={share:g}"],
                    {1.0: whole, 0.1: tenth}.get(share),
                    small,
                    {**MODELS[small], **options},
                    share,
                    (f"a_{share:g}", "row a"),
                )
            )
    return rows


def _set(options: Mapping[str, Any]) -> list[str]:
    return [f"model.options.{key}={str(value).lower()}" for key, value in options.items()]


def measure(
    *,
    only: Only = "",
    fractions: Annotated[
        str, typer.Option(metavar="F,F,...", help="Shares of each class; 1.0,0.1 by default, in small 0.1.")
    ] = "",
    data_root: DataRoot = "",
    runs: Runs = "runs/convit-ablation",
    settings: Settings = None,
    commands: Commands = False,
    small: Small = False,
    seeds: Seeds = 1,
    epochs: Epochs = None,
    device: str = "auto",
    on_run: Callable[[str], object] = lambda text: None,
    done: Mapping[str, Line] = {},
) -> Iterator[dict[str, Any]]:
    """One row per setting and share of the images. Source: ConViT, Table 3."""
    return measure_rows(
        table(only, fractions or ("0.1" if small else BOTH)), small=small, seeds=seeds, epochs=epochs,
        small_epochs=SMALL_EPOCHS, runs=runs, data_root=data_root, settings=settings, commands=commands,
        device=device, on_run=on_run, done=done,
    )  # fmt: skip


def flops(*, only: str, fractions: str, epochs: int | None, **_: Any) -> float:
    """Operations of the runs: a share of the images takes as many steps as all."""
    return sum(
        training_flops("convit_small_plus", TRAIN_IMAGES, epochs or EPOCHS)
        for _ in table(only, fractions or BOTH)
    )


def draw(rows: Sequence[Line]) -> "Figure":
    """Top-1 of each row, one panel per share of the images."""
    return bars(
        rows,
        lambda row: f"{row['row']}  {row['model']}",
        "top-1, %",
        panel=lambda row: f"{row['fraction']:.0%} of the images",
    )


STUDIES = {
    "convit-ablation": Study(
        "What do ConViT's gates, its convolutional start and its trained positional attention contribute?",
        measure,
        training_columns({"row": lambda row: row["row"], "model": lambda row: row["model"]}),
        source="ConViT (arXiv:2103.10697v2), Table 3: ConViT-S+, 300 epochs; on 10 % of the images 3,000, as in"
        " Table 2",
        expected="top-1 as printed in Table 3; within 0.3 points, an assumption about two runs of one recipe",
        needs="ImageNet (--data-root) and 14 training runs; --commands prints them for a cluster, whose folders"
        " --runs then reads",
        small="about a minute of one processor: 7 runs on a tenth of the digits",
        flops=flops,
        draw=draw,
    )
}
