"""Read the files of a run folder."""

import json
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tetravit.data.build import as_trained, build_dataset
from tetravit.data.datasets import Dataset
from tetravit.recipe import validated


@dataclass(frozen=True)
class Run:
    """The files of a run folder.

    steps, evaluations: records of metrics.jsonl. timing: records of timing.jsonl. events: records of events.jsonl,
    such as rollbacks. evaluation: scores and mistakes of the best weights.
    """

    folder: Path
    recipe: dict[str, Any] = field(default_factory=dict)
    recipe_text: str = ""
    info: dict[str, Any] = field(default_factory=dict)
    steps: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    timing: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    evaluation: dict[str, Any] = field(default_factory=dict)

    def validation_set(self) -> Dataset | None:
        """The validation data; None if it no longer exists."""
        return self.dataset("val")

    def dataset(self, split: Literal["train", "val"]) -> Dataset | None:
        """The data of a split; None if it no longer exists."""
        try:
            recipe = validated(self.recipe)
            return build_dataset(as_trained(recipe.data, recipe.model.head), split)
        except (ValueError, OSError):
            return None


def read(folder: Path) -> Run:
    """Read a run folder; missing files count as empty.

    Raises:
        ValueError: if it has no recipe.
    """
    recipe = folder / "recipe.toml"
    if not recipe.is_file():
        raise ValueError(f"{str(folder)!r} is no run folder: it has no recipe.toml.")
    text = recipe.read_text(encoding="utf-8")
    rows = _lines(folder / "metrics.jsonl")
    return Run(
        folder=folder,
        recipe=tomllib.loads(text),
        recipe_text=text,
        info=_object(folder / "run.json"),
        steps=[row for row in rows if row.get("event") == "step"],
        evaluations=[row for row in rows if row.get("event") == "evaluation"],
        timing=_lines(folder / "timing.jsonl"),
        events=_lines(folder / "events.jsonl"),
        evaluation=_object(folder / "evaluation.json"),
    )


def _object(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _lines(path: Path) -> list[dict[str, Any]]:
    """Objects of a JSON lines file; an incomplete last line is skipped."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
