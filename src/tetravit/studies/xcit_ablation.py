"""What each part of XCiT contributes: stem, local patch interaction, unit length, temperature, XCA (Table 4)."""

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
    training_columns,
    training_flops,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "all": ("XCiT", {}),
    "linear-stem": ("linear stem", {"stem": "linear"}),
    "no-lpi": ("without local patch interaction", {"lpi": False}),
    "no-l2": ("without unit length", {"l2_norm": False}),
    "fixed-temperature": ("temperatures fixed at 1", {"temperature": "fixed"}),
    "no-xca": ("without cross-covariance attention", {"xca": False}),
}
# Top-1 in percent of the released models, as the authors' README has them.
WHOLE = {"xcit_small_12_p16": 82.0, "xcit_small_12_p8": 83.4}
EPOCHS, SMALL_EPOCHS = 400, 3
SMALL_FRACTION = 0.1  # of the digits: on all of them every setting is right on 98 % and more


def table(only: str, models: str, *, small: bool) -> list[Row]:
    """One run per setting and model.

    Raises:
        ValueError: for a model that the table does not have.
    """
    names = ["xcit_nano_12_p16"] if small else [name.strip() for name in models.split(",")]
    rows = []
    for model in names:
        if not small and model not in WHOLE:
            raise ValueError(f"--models takes {', '.join(WHOLE)}; got {model!r}.")
        for name in chosen_rows(only, tuple(SETTINGS)):
            about, options = SETTINGS[name]
            overrides = [f"model.name={model}"]
            overrides += [f"model.options.{key}={str(value).lower()}" for key, value in options.items()]
            rows.append(
                Row(
                    name if small else f"{model}_{name}",
                    {"weights": "small xcit" if small else model, "setting": about},
                    "xcit/imagenet",
                    overrides,
                    WHOLE.get(model) if name == "all" else None,
                    "xcit_nano_12_p16",
                    {**MODELS["xcit_nano_12_p16"], **options},
                    SMALL_FRACTION if small else 1.0,
                    ("all", "XCiT"),
                )
            )
    return rows


def measure(
    *,
    models: Annotated[str, typer.Option(metavar="M,M,...", help="Models of the table.")] = ",".join(WHOLE),
    only: Only = "",
    data_root: DataRoot = "",
    runs: Runs = "runs/xcit-ablation",
    settings: Settings = None,
    commands: Commands = False,
    small: Small = False,
    seeds: Seeds = 2,
    epochs: Epochs = None,
    device: str = "auto",
    on_run: Callable[[str], object] = lambda text: None,
    done: Mapping[str, Line] = {},
) -> Iterator[dict[str, Any]]:
    """One row per setting and model. Source: XCiT, Table 4."""
    return measure_rows(
        table(only, models, small=small), small=small, seeds=seeds, epochs=epochs, small_epochs=SMALL_EPOCHS,
        runs=runs, data_root=data_root, settings=settings, commands=commands, device=device, on_run=on_run, done=done,
    )  # fmt: skip


def flops(*, only: str, models: str, epochs: int | None, **_: Any) -> float:
    """Operations of the runs."""
    rows = table(only, models, small=False)
    return sum(training_flops(row.facts["weights"], TRAIN_IMAGES, epochs or EPOCHS) for row in rows)


def draw(rows: Sequence[Line]) -> "Figure":
    """Top-1 of each setting."""
    return bars(rows, lambda row: row["setting"], "top-1, %", panel=lambda row: row["weights"])


STUDIES = {
    "xcit-ablation": Study(
        "What do XCiT's stem, local patch interaction, unit length, temperatures and attention contribute?",
        measure,
        training_columns({"model": lambda row: row["weights"], "setting": lambda row: row["setting"]}),
        source="the question of XCiT (arXiv:2106.09681), Table 4",
        expected="82.0 and 83.4 for the whole models, from the authors' README; the table's other figures are not"
        " verified and so not printed",
        needs="ImageNet (--data-root) and 12 training runs; --commands prints them for a cluster, whose folders"
        " --runs then reads",
        small="about two minutes of one processor: 12 runs on a tenth of the digits",
        flops=flops,
        draw=draw,
    )
}
