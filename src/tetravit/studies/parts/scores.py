"""Top-1 of variants of a model over a validation set, with how far a part of the images may be off."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tetravit.models.base import Model


def score(
    weights: str | Path,
    overrides: Sequence[str],
    *,
    images: int | None,
    device: str,
    prepare: "Callable[[Model], Model] | None" = None,
) -> dict[str, Any]:
    """Top-1 in percent, the number of images, and its standard error in points."""
    from tetravit.runs.evaluate import evaluate

    result = evaluate(weights, overrides, images=images, device=device, prepare=prepare)
    top1 = result.scores["top1"]
    return {
        "top1": 100 * top1,
        "images": result.images,
        "error": 100 * math.sqrt(max(top1 * (1 - top1), 1e-9) / result.images),
    }


def spread(row: dict[str, Any], published: float) -> float:
    """Points that a score may differ from a published one: its rounding, and two standard errors of a part."""
    return round(published + (0.0 if row["images"] >= 50_000 else 2 * row["error"]), 2)


def data_overrides(root: str, workers: str = "auto") -> list[str]:
    """The overrides for a validation set at `root`.

    Raises:
        ValueError: for no root.
    """
    if not root:
        raise ValueError(
            "The study needs a validation set: --data-root DIR (ImageNet), or --small for the digits."
        )
    return [f"data.root={root}", f"data.workers={workers}"]
