"""Sample efficiency of ConViT against DeiT: both trained from scratch on a share of each class (Table 2).

As many steps for each share; the validation set is always whole. With `--small` on the digits.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tetravit.studies.base import Row as Line
from tetravit.studies.base import Study
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

PAIR = ("deit_small", "convit_small")
# Share of each class -> top-1 in percent of DeiT-S and of ConViT-S.
TABLE_2 = {0.05: (34.8, 47.8), 0.1: (48.0, 59.6), 0.3: (66.1, 73.7), 0.5: (74.6, 78.2), 1.0: (79.9, 81.4)}
EPOCHS, SMALL_EPOCHS = 300, 5


def table(only: str, fractions: str, *, small: bool) -> list[Row]:
    """Both models on each share."""
    rows = []
    for share in shares(fractions or ("0.1,1.0" if small else ",".join(f"{f:g}" for f in TABLE_2))):
        for model in chosen_rows(only, PAIR):
            alike = model.replace("small", "tiny")
            overrides = [f"model.name={model}", f"data.options.fraction={share:g}"]
            published = TABLE_2.get(share)
            rows.append(
                Row(
                    f"{model}_{share:g}",
                    {"model": f"small {alike.partition('_')[0]}" if small else model},
                    "convit/sample_efficiency",
                    overrides,
                    published and published[PAIR.index(model)],
                    alike,
                    MODELS[alike],
                    share,
                    (f"deit_small_{share:g}", "DeiT"),
                )
            )
    return rows


def measure(
    *,
    fractions: Annotated[
        str, typer.Option(metavar="F,F,...", help="Shares of each class; default: those of the paper.")
    ] = "",
    only: Only = "",
    data_root: DataRoot = "",
    runs: Runs = "runs/sample-efficiency",
    settings: Settings = None,
    commands: Commands = False,
    small: Small = False,
    seeds: Seeds = 3,
    epochs: Epochs = None,
    device: str = "auto",
    on_run: Callable[[str], object] = lambda text: None,
    done: Mapping[str, Line] = {},
) -> Iterator[dict[str, Any]]:
    """One row per model and share, `epochs` on all images, 1 / share times as many on a part: ConViT, Table 2."""
    return measure_rows(
        table(only, fractions, small=small), small=small, seeds=seeds, epochs=epochs, small_epochs=SMALL_EPOCHS,
        runs=runs, data_root=data_root, settings=settings, commands=commands, device=device, on_run=on_run, done=done,
    )  # fmt: skip


def flops(*, only: str, fractions: str, epochs: int | None, **_: Any) -> float:
    """Operations of the runs: a share of the images takes as many steps as all."""
    rows = table(only, fractions, small=False)
    return sum(training_flops(row.facts["model"], TRAIN_IMAGES, epochs or EPOCHS) for row in rows)


def draw(rows: Sequence[Line]) -> "Figure":
    """Top-1 over the share of the images, one curve per model; published figures dashed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axes = figure.subplots()
    for number, model in enumerate(dict.fromkeys(row["model"] for row in rows)):
        own = sorted((row for row in rows if row["model"] == model), key=lambda row: row["fraction"])
        percent, colour = [100 * row["fraction"] for row in own], f"C{number}"
        spread = [row["deviation"] or 0 for row in own]
        axes.errorbar(
            percent, [row["got"] for row in own], spread, marker="o", capsize=3, color=colour, label=model
        )
        known = [(100 * row["fraction"], row["expected"]) for row in own if row["expected"] is not None]
        if known:
            label = f"{model}, published"
            axes.plot(*zip(*known, strict=True), linestyle="--", marker=".", color=colour, label=label)
    axes.set(xlabel="training images, % of each class", ylabel="top-1, %", xscale="log")
    ticks = sorted({100 * row["fraction"] for row in rows})
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
    axes.set_xticks([], minor=True)
    axes.legend()
    return figure


STUDIES = {
    "sample-efficiency": Study(
        "ConViT against DeiT on a share of each class: does a convolutional start help when images are few?",
        measure,
        training_columns({"model": lambda row: row["model"], "steps": lambda row: row["steps"]}),
        source="ConViT (arXiv:2103.10697v2), Table 2: 300 / share epochs",
        expected="top-1 as printed in Table 2 (the text has 59.5 and 46.5 at 10 %); within 0.3 points, which is an"
        " assumption about two runs of one recipe",
        needs="ImageNet (--data-root) and 10 training runs; --commands prints them for a cluster, whose folders"
        " --runs then reads",
        small="about two minutes of one processor: 12 runs on the digits",
        flops=flops,
        draw=draw,
    )
}
