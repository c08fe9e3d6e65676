"""Top-1 of variants of a model over a validation set: how far a part of the images may be off, and which differ."""

import math
from collections.abc import Callable, Mapping, Sequence
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


def standard_error(row: Mapping[str, Any]) -> float:
    """The standard error of a row's top-1 in points: that of its images, and of its runs where there are several."""
    share = row["got"] / 100
    images = 1e4 * max(share * (1 - share), 1e-9) / row["images"]
    runs = row["deviation"] ** 2 / len(row["top1"]) if row.get("deviation") else 0.0
    return math.sqrt(images + runs)


def one_run_beside(row: dict[str, Any], other: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A row whose verdict is how far it lies from another, where no standard error of the score is known."""
    if other is row:
        return row
    apart = round(row["got"] - other["got"], 1)
    return {**row, "verdict": f"{_signed(apart)} {name}, one run each"}


def _signed(apart: float) -> str:
    return f"{abs(apart):g} points {'below' if apart < 0 else 'above'}"


def beside(row: dict[str, Any], other: Mapping[str, Any] | None, name: str) -> dict[str, Any]:
    """A row in small whose verdict is how far its top-1 lies from that of another row, called `name`.

    Significant from two standard errors on, for independent samples of images: a cautious bound.
    """
    if other is None or other is row or row["got"] is None or other["got"] is None:
        return row
    apart = round(row["got"] - other["got"], 1)
    least = 2 * math.hypot(standard_error(row), standard_error(other))
    if abs(apart) < least:
        verdict = (
            f"no significant difference from {name}: {apart:+g} points, two standard errors are {least:.1f}"
        )
    else:
        verdict = f"{_signed(apart)} {name}"
    return {**row, "verdict": verdict}
