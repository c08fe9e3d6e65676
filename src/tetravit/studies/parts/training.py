"""Training runs as rows of a study: published recipes in folders that continue, or small runs on the digits."""

import json
import math
import shlex
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tetravit.studies.base import compared, verdicts
from tetravit.studies.parts.scores import beside

if TYPE_CHECKING:
    from tetravit.recipe import Recipe

TRAIN_IMAGES = 1_281_167  # of ImageNet-1k
SIDE = 32  # pixels of the digits
VAL_IMAGES = 359  # digits that are held out
BATCH, WARMUP = 32, 30  # images, steps: of the small runs on digits
DRAWING = {"size": 64, "most": 2}  # pixels a side; shapes at most

DataRoot = Annotated[str, typer.Option(metavar="DIR", help="ImageNet.")]
Runs = Annotated[
    str, typer.Option(metavar="DIR", help="Folders of the runs: finished ones are read, others continued.")
]
Only = Annotated[str, typer.Option(metavar="ROW,ROW,...", help="These rows alone.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Of every recipe, such as run.precision=bf16; repeatable."
    ),
]
Commands = Annotated[
    bool, typer.Option("--commands", help="Print the training commands, to run them elsewhere, and end.")
]
Small = Annotated[bool, typer.Option("--small", help="Small models on the included digits.")]
Seeds = Annotated[int, typer.Option(metavar="N", min=1, help="With --small: runs of each row.")]
Epochs = Annotated[
    int | None, typer.Option(metavar="N", min=1, help="Epochs of a run on all images; None: as published.")
]


@dataclass(frozen=True)
class Trained:
    """The score of a run: top-1 in percent, best and last; nan where the loss was not finite.

    history: (epoch, top-1 in percent) of every evaluation.
    """

    top1: float
    last: float
    top5: float
    steps: int
    note: str = ""
    history: Sequence[tuple[float, float]] = field(default=())


@dataclass(frozen=True)
class Row:
    """A row of a table that takes a training run.

    name: of the row and of its folder. facts: its columns. recipe, overrides: of the published run. expected: top-1
    in percent; None: no verified figure. model, options: of the small run. fraction: of the images of each class.
    """

    name: str
    facts: Mapping[str, Any]
    recipe: str
    overrides: Sequence[str]
    expected: float | None
    model: str
    options: Mapping[str, Any]
    fraction: float = 1.0
    beside: tuple[str, str] = ("", "")


SPREAD = 0.3  # points between two runs of one recipe: an assumption, no paper states it


def measure_rows(
    rows: Sequence[Row],
    *,
    small: bool,
    seeds: int,
    epochs: int | None,
    small_epochs: int,
    runs: str,
    data_root: str,
    settings: Sequence[str] | None,
    commands: bool,
    device: str,
    on_run: Callable[[str], object],
    done: Mapping[str, Mapping[str, Any]],
    data: Sequence[str] | None = None,
) -> Iterator[dict[str, Any]]:
    """The rows as they are trained, in small or by their published recipes.

    data: overrides in place of `data.root=DATA_ROOT`.

    Raises:
        ValueError: for no data; with `small`, for options of the published form.
    """
    if small:
        if data_root or settings or commands:
            raise ValueError("--small trains on the digits: without --data-root, --set and --commands.")
        yield from _small_rows(rows, seeds, epochs or small_epochs, device, on_run, done)
        return
    check_root(data_root)
    shared = [*(data or [f"data.root={data_root}"]), *(settings or ())]
    shared += [f"run.device={device}"] if device != "auto" else []
    shared += [f"epochs={epochs}"] if epochs else []
    for row in rows:
        folder, overrides = Path(runs) / row.name, [*row.overrides, *shared]
        if commands:
            print(command(row.recipe, overrides, folder))
            continue
        key = " ".join((row.name, *overrides))
        if key in done:
            yield dict(done[key])
            continue
        found = published_run(row.recipe, overrides, folder, on_run)
        differs = f"{epochs} epochs" if epochs else ""
        yield {
            "key": key, **row.facts, "fraction": row.fraction, "run": str(folder), **_scores([found]),
            "history": list(found.history), **compared(found.top1, row.expected, SPREAD, digits=1, differs=differs),
        }  # fmt: skip


def _small_rows(
    rows: Sequence[Row],
    seeds: int,
    epochs: int,
    device: str,
    on_run: Callable[[str], object],
    done: Mapping[str, Mapping[str, Any]],
) -> Iterator[dict[str, Any]]:
    lines: dict[str, dict[str, Any]] = {}
    for row in rows:
        key = " ".join(("small", row.name, f"{row.fraction:g}", f"{epochs} epochs", f"{seeds} seeds"))
        if key in done:
            lines[row.name] = dict(done[key])
            yield beside(lines[row.name], lines.get(row.beside[0]), row.beside[1])
            continue
        found = []
        for seed in range(seeds):
            on_run(f"{row.name}, seed {seed}")
            recipe = digits_recipe(
                row.model, row.options, epochs=epochs, seed=seed, fraction=row.fraction, device=device
            )
            found.append(small_run(recipe))
        mean = statistics.mean(run.top1 for run in found)
        lines[row.name] = {
            "key": key, **row.facts, "fraction": row.fraction, "epochs": epochs, "seeds": seeds, "images": VAL_IMAGES,
            **_scores(found), **compared(mean, None, SPREAD, digits=1),
        }  # fmt: skip
        yield beside(lines[row.name], lines.get(row.beside[0]), row.beside[1])


def _scores(found: Sequence[Trained]) -> dict[str, Any]:
    """What is kept of the runs of a row; None for what is not finite."""
    tops = [run.top1 if math.isfinite(run.top1) else None for run in found]
    finite = [top for top in tops if top is not None]
    return {
        "top1": tops,
        "top5": [run.top5 if math.isfinite(run.top5) else None for run in found],
        "deviation": round(statistics.stdev(finite), 2) if len(finite) > 1 else None,
        "steps": found[-1].steps,
        "note": next((run.note for run in found if run.note), ""),
    }


def training_columns(
    heads: Mapping[str, Callable[[Mapping[str, Any]], Any]],
) -> dict[str, Callable[..., Any]]:
    """Columns of the printed table: those of a study, then what the runs reached."""
    return {
        **heads,
        "images": lambda row: f"{row['fraction']:.0%}",
        **verdicts("top-1 %"),
        "deviation": lambda row: row["deviation"],
        "runs": lambda row: len(row["top1"]),
        "note": lambda row: row["note"],
    }


def published_run(
    recipe: str, overrides: Sequence[str], folder: Path, on_run: Callable[[str], object]
) -> Trained:
    """Read a finished run in `folder`; otherwise start or continue it."""
    from tetravit.engine.guard import NotFinite
    from tetravit.files import read_json
    from tetravit.recipe import find, load
    from tetravit.runs import train

    if (folder / "run.json").is_file() and read_json(folder / "run.json").get("status") == "finished":
        on_run(f"{folder} is finished")
        return read_run(folder)
    on_run(command(recipe, overrides, folder))
    try:
        train(load(find(recipe), overrides), folder, continuing=True)
    except NotFinite as error:
        return Trained(math.nan, math.nan, math.nan, error.step, f"loss not finite at step {error.step}")
    return read_run(folder)


def command(recipe: str, overrides: Sequence[str], folder: Path) -> str:
    """The training command of a run."""
    return shlex.join(["tetravit", "train", recipe, "--into", str(folder), "--continue", *overrides])


def read_run(folder: Path) -> Trained:
    """The scores of a run of a classifier, from its folder.

    Raises:
        ValueError: for a run that was never evaluated.
    """
    records = []
    for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if "top1" in record:
            records.append(record)
    if not records:
        raise ValueError(f"{folder} has no evaluation: its recipe sets run.evaluate_epochs=0?")
    best = max(records, key=lambda record: record["top1"])
    return Trained(
        100 * best["top1"],
        100 * records[-1]["top1"],
        100 * best.get("top5", math.nan),
        records[-1]["step"],
        history=[(record["epoch"], 100 * record["top1"]) for record in records],
    )


def digits_recipe(
    model: str,
    options: Mapping[str, Any],
    *,
    epochs: int,
    seed: int = 0,
    fraction: float = 1.0,
    device: str = "auto",
) -> "Recipe":
    """A small run on the digits; with `epochs` on all images, 1 / fraction times as many on a part."""
    from tetravit.recipe import validated

    return validated(
        {
            "epochs": epochs,
            "scale_epochs": True,
            "task": {"name": "classify", "label_smoothing": 0.1},
            "model": {"name": model, "options": dict(options)},
            "data": {
                "name": "digits",
                "image_size": SIDE,
                "batch_size": BATCH,
                "augment": f"affine(10, 0.08, (0.85, 1.15), 8, size={SIDE})",
                "crop": 1.0,
                "workers": 0,
                "options": {"fraction": fraction},
            },
            "optim": {"lr": 2e-3, "lr_batch": 0, "warmup_epochs": 0, "warmup_steps": WARMUP, "clip": 1.0},
            "run": {
                "seed": seed,
                "device": device,
                "evaluate_epochs": 0,
                "save_epochs": 0,
                "save_minutes": 0.0,
                "log_steps": 1000,
            },
        }
    )


def shapes_recipe(name: str, head: str, patch: int, *, steps: int, device: str) -> "Recipe":
    """The recipe `name` on small drawings of one or two shapes with a small XCiT: a head, a patch size, steps."""
    import tomllib

    from tetravit.recipe import find, validated

    table = tomllib.loads(find(name).read_text(encoding="utf-8"))
    table["steps"] = steps
    options = {"patch_size": patch, "dim": 64, "depth": 4, "out_blocks": [0, 1, 2, 3]}  # a level per block
    table["model"] = {
        "name": "xcit_nano_12_p16",
        "head": head,
        "options": options,
        "head_options": table["model"]["head_options"],
    }
    batch = 4 if table["task"]["name"] == "detect" else 8
    table["data"] |= {
        "workers": 0,
        "batch_size": batch,
        "image_size": DRAWING["size"],
        "options": dict(DRAWING),
    }
    table["optim"] = {**table["optim"], "lr": 2e-3, "warmup_steps": min(50, steps // 2)}
    table["optim"].pop("ema", None)
    table["run"] = {"device": device, "evaluate_steps": 0, "evaluate_epochs": 0, "log_steps": 1000}
    return validated(table)


def small_run(recipe: "Recipe") -> Trained:
    """Train a small recipe in a folder that is deleted; it is evaluated once, at the end."""
    from tetravit.engine.guard import NotFinite
    from tetravit.runs import train

    with tempfile.TemporaryDirectory() as folder:
        try:
            summary = train(recipe, Path(folder) / "run", reporters=[])
        except NotFinite as error:
            return Trained(math.nan, math.nan, math.nan, error.step, f"loss not finite at step {error.step}")
    top1 = 100 * (summary.best or 0.0)
    return Trained(top1, top1, math.nan, summary.steps)


def chosen_rows(only: str, known: Sequence[str]) -> list[str]:
    """The rows of `--only`, in the table's order; all where it is empty.

    Raises:
        ValueError: for a row that the table does not have.
    """
    asked = [part.strip() for part in only.split(",") if part.strip()]
    for part in asked:
        if part not in known:
            raise ValueError(f"--only takes rows of {', '.join(known)}; got {part!r}.")
    return [row for row in known if not asked or row in asked]


def shares(text: str) -> list[float]:
    """The numbers of `--fractions`.

    Raises:
        ValueError: for what is no number in (0, 1].
    """
    try:
        found = [float(share) for share in text.split(",")]
    except ValueError:
        raise ValueError(f"--fractions takes numbers with commas between them; got {text!r}.") from None
    for share in found:
        if not 0 < share <= 1:
            raise ValueError(f"A fraction is above 0 and at most 1; got {share:g}.")
    return found


def training_flops(model: str, images: float, epochs: float) -> float:
    """Operations of a run: three times those of its forward passes, two per multiply-add."""
    from tetravit.benchmark.flops import table

    return 6.0 * table()[model].macs * images * epochs


def check_root(root: str) -> None:
    """Raises: ValueError for no data."""
    if not root:
        raise ValueError("The study needs ImageNet: --data-root DIR, or --small for the digits.")
