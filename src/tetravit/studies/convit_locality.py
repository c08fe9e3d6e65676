"""ConViT's accuracy against the strength of its locality and the number of positional layers (Figure 8)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    training_columns,
    training_flops,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STRENGTHS = (0.01, 0.1, 1.0)
LAYERS, SMALL_LAYERS = (0, 3, 6, 9), (0, 1, 2, 3)
CLASSES = 100  # the first ones
EPOCHS, SMALL_EPOCHS = 300, 5


def table(only: str, *, small: bool) -> list[Row]:
    """One run without positional layers, then one per number of layers and strength."""
    counts = SMALL_LAYERS if small else LAYERS
    settings = [(0, 1.0), *((count, alpha) for count in counts[1:] for alpha in STRENGTHS)]
    named = {f"layers-{count}_alpha-{alpha:g}": (count, alpha) for count, alpha in settings}
    rows = []
    for name in chosen_rows(only, tuple(named)):
        count, alpha = named[name]
        options = {"num_gpsa": count, "locality_strength": alpha}
        overrides = [
            "model.name=convit_small_plus",
            *(f"model.options.{k}={v:g}" for k, v in options.items()),
        ]
        overrides += ["data.name=image_folder"]
        small_options = {**MODELS["convit_tiny"], **options}
        facts = {"layers": count, "alpha": alpha if count else None}
        beside = ("layers-0_alpha-1", "no positional layers")
        rows.append(
            Row(name, facts, "convit/imagenet", overrides, None, "convit_tiny", small_options, beside=beside)
        )
    return rows


def first_classes(root: Path, folder: Path, count: int = CLASSES) -> Path:
    """A folder with links to the first `count` class folders of ImageNet's train and val.

    Raises:
        ValueError: where there are fewer.
    """
    for part in ("train", "val"):
        there = (
            sorted(p.name for p in (root / part).iterdir() if p.is_dir()) if (root / part).is_dir() else []
        )
        if len(there) < count:
            raise ValueError(
                f"The study needs {count} class folders in {root / part}; there are {len(there)}."
            )
        (folder / part).mkdir(parents=True, exist_ok=True)
        for name in there[:count]:
            link = folder / part / name
            if not link.is_symlink():
                link.symlink_to((root / part / name).resolve(), target_is_directory=True)
    return folder


def measure(
    *,
    only: Only = "",
    data_root: DataRoot = "",
    runs: Runs = "runs/convit-locality",
    settings: Settings = None,
    commands: Commands = False,
    small: Small = False,
    seeds: Seeds = 1,
    epochs: Epochs = None,
    device: str = "auto",
    on_run: Callable[[str], object] = lambda text: None,
    done: Mapping[str, Line] = {},
) -> Iterator[dict[str, Any]]:
    """One row per strength and number of positional layers. Source: ConViT, Figures 8 and 12."""
    data = []
    if data_root and not small:
        data = [f"data.root={first_classes(Path(data_root), Path(runs) / 'classes')}"]
    return measure_rows(
        table(only, small=small), small=small, seeds=seeds, epochs=epochs, small_epochs=SMALL_EPOCHS, runs=runs,
        data_root=data_root, settings=settings, commands=commands, device=device, on_run=on_run, done=done, data=data,
    )  # fmt: skip


def flops(*, only: str, epochs: int | None, **_: Any) -> float:
    """Operations of the runs over a tenth of the classes."""
    runs = len(table(only, small=False))
    return runs * training_flops("convit_small_plus", TRAIN_IMAGES * CLASSES / 1000, epochs or EPOCHS)


def draw(rows: Sequence[Line]) -> "Figure":
    """Top-1 over the number of positional layers, one curve per strength."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axes = figure.subplots()
    none = [row for row in rows if not row["layers"]]
    for alpha in STRENGTHS:
        own = [*none, *sorted((r for r in rows if r["alpha"] == alpha), key=lambda r: r["layers"])]
        axes.plot(
            [r["layers"] for r in own], [r["got"] for r in own], marker="o", label=f"strength {alpha:g}"
        )
    axes.set(xlabel="layers of positional attention", ylabel="top-1, %")
    axes.set_xticks(sorted({row["layers"] for row in rows}))
    axes.legend()
    return figure


STUDIES = {
    "convit-locality": Study(
        "How does ConViT's accuracy depend on its locality strength and its number of positional layers?",
        measure,
        training_columns(
            {"layers": lambda row: row["layers"], "strength": lambda row: row["alpha"]},
        ),
        source="ConViT (arXiv:2103.10697v2), Figure 8: ConViT-S+ on the first 100 classes of ImageNet",
        expected="it grows with both, from about 77 to 81 % as read off the figure; single figures are not printed",
        needs="ImageNet (--data-root) and 10 training runs on 100 classes; --commands prints them for a cluster,"
        " whose folders --runs then reads",
        small="about two minutes of one processor: 10 runs on the digits",
        flops=flops,
        draw=draw,
    )
}
