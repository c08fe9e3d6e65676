"""Sample efficiency of ConViT against DeiT: both trained from scratch on a share of each class of the digits.

The question of ConViT (arXiv:2103.10697v2, Table 2), in small and on real images: as many steps for each share; the
validation set is always whole.
"""

import math
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tetravit.studies.base import Study

if TYPE_CHECKING:
    from tetravit.recipe import Recipe

# fmt: off
MODELS: dict[str, dict[str, Any]] = {  # alike but for what mixes the tokens: 4 heads of 16 channels, 4 blocks
    "convit_tiny": {"patch_size": 4, "dim": 64, "num_heads": 4, "depth": 4, "num_gpsa": 3},
    "deit_tiny":   {"patch_size": 4, "dim": 64, "num_heads": 4, "depth": 4},
}
# fmt: on
FRACTIONS = (0.1, 1.0)


@dataclass(frozen=True)
class Row:
    """One model on one part of the training images. top1: one per seed, of the last weights, in percent."""

    model: str
    fraction: float
    images: int
    steps: int
    params: int
    top1: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.mean(self.top1)

    @property
    def spread(self) -> float:
        """Standard deviation over the seeds; nan for one."""
        return statistics.stdev(self.top1) if len(self.top1) > 1 else math.nan


def recipe(model: str, fraction: float, *, epochs: int, seed: int, device: str = "auto") -> "Recipe":
    """One run; with `epochs` on all images, 1 / fraction times as many on a part."""
    from tetravit.recipe import validated

    return validated(
        {
            "epochs": epochs,
            "scale_epochs": True,
            "task": {"name": "classify", "label_smoothing": 0.1},
            "model": {"name": model, "options": MODELS[model]},
            "data": {
                "name": "digits",
                "image_size": 32,
                "batch_size": 64,
                "augment": "affine(10, 0.08, (0.85, 1.15), 8, size=32)",
                "crop": 1.0,
                "workers": 0,
                "options": {"fraction": fraction},
            },
            "optim": {"lr": 2e-3, "lr_batch": 0, "warmup_epochs": min(4, epochs), "clip": 1.0},
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


def run(
    *,
    models: Sequence[str] = tuple(MODELS),
    fractions: Sequence[float] = FRACTIONS,
    seeds: Sequence[int] = (0, 1, 2),
    epochs: int = 40,
    device: str = "auto",
    on_run: Callable[[str], object] = lambda text: None,
) -> list[Row]:
    """Train every model on every part with every seed.

    Args:
        models: of `MODELS`. fractions: parts of each class, in (0, 1]. seeds: one run each. epochs: of a run on
            all images.
        device: as in a recipe. on_run: called with one line before each run.

    Raises:
        ValueError: for a model that is not in `MODELS`, or no seed.
    """
    unknown = [model for model in models if model not in MODELS]
    if unknown:
        raise ValueError(f"The study compares {', '.join(MODELS)}; got {unknown[0]!r}.")
    if not seeds:
        raise ValueError("The study needs one seed or more; got none.")
    return [
        _row(model, fraction, seeds, epochs, device, on_run) for fraction in fractions for model in models
    ]


def _row(
    model: str,
    fraction: float,
    seeds: Sequence[int],
    epochs: int,
    device: str,
    on_run: Callable[[str], object],
) -> Row:
    from tetravit.data.build import build_dataset
    from tetravit.models import create_model
    from tetravit.runs import train

    top1, steps = [], 0
    plan = recipe(model, fraction, epochs=epochs, seed=0)
    params = sum(
        p.numel() for p in create_model(model, num_classes=10, image_size=32, **MODELS[model]).parameters()
    )
    for seed in seeds:
        on_run(f"{model}, {100 * fraction:g} % of the images, seed {seed}")
        with tempfile.TemporaryDirectory() as folder:
            chosen = recipe(model, fraction, epochs=epochs, seed=seed, device=device)
            summary = train(chosen, Path(folder) / "run", reporters=[])
        # evaluated once, at the end: the best weights are the last
        top1.append(100 * (summary.best or 0.0))
        steps = summary.steps
    return Row(model, fraction, len(build_dataset(plan.data, "train")), steps, params, tuple(top1))


def measure(
    *,
    fractions: Annotated[str, typer.Option(metavar="F,F,...", help="Shares of each class.")] = "0.1,1.0",
    seeds: Annotated[int, typer.Option(metavar="N", min=1, help="Runs of each.")] = 3,
    epochs: Annotated[int, typer.Option(metavar="N", min=1, help="Epochs of a run on all images.")] = 40,
    device: str = "auto",
    on_run: Callable[[str], object] = lambda text: None,
) -> list[dict[str, Any]]:
    """The rows of `run` as plain data. Source: ConViT, Table 2, in small.

    Raises:
        ValueError: for fractions that are no numbers in (0, 1].
    """
    try:
        shares = [float(share) for share in fractions.split(",")]
    except ValueError:
        raise ValueError(f"--fractions takes numbers with commas between them; got {fractions!r}.") from None
    wrong = [share for share in shares if not 0 < share <= 1]
    if wrong:
        raise ValueError(f"A fraction is above 0 and at most 1; got {wrong[0]:g}.")
    rows = run(fractions=shares, seeds=range(seeds), epochs=epochs, device=device, on_run=on_run)
    return [
        {**asdict(row), "mean": row.mean, "spread": row.spread if seeds > 1 else None, "epochs": epochs}
        for row in rows
    ]


STUDIES = {
    "sample-efficiency": Study(
        "ConViT against DeiT on a share of the digits: does a convolutional start help when images are few?",
        measure,
        {
            "model": lambda row: row["model"],
            "parameters": lambda row: f"{row['params']:,}",
            "images": lambda row: row["images"],
            "steps": lambda row: row["steps"],
            "top-1 %": lambda row: f"{row['mean']:.1f}",
            "spread": lambda row: None if row["spread"] is None else f"{row['spread']:.1f}",
            "runs": lambda row: len(row["top1"]),
        },
        source="the question of ConViT (arXiv:2103.10697v2), Table 2, in small: digits in place of ImageNet",
        needs="the included digits; ten minutes of one processor",
    )
}
