"""A run folder -> report.html: one file that shows what was trained, how it went and where it fails.

The page needs nothing but itself: no network, no fonts, no library. What a run folder lacks is left out.
"""

import base64
import io
import json
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from tetravit.data.loader import build_dataset
from tetravit.recipe import validated
from tetravit.report.page import Picture, page

NAME = "report.html"
SMALL = 64  # pixels; below, an image is enlarged with its pixels showing
PICTURE_SIDE = 224  # pixels; larger images are shrunk, so that the file stays small


@dataclass(frozen=True)
class Run:
    """What a run folder says.

    steps, evaluations: records of metrics.jsonl. timing: records of timing.jsonl. evaluation: what the best
    weights score and what they get wrong.
    """

    folder: Path
    recipe: dict[str, Any] = field(default_factory=dict)
    recipe_text: str = ""
    info: dict[str, Any] = field(default_factory=dict)
    steps: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    timing: list[dict[str, Any]] = field(default_factory=list)
    evaluation: dict[str, Any] = field(default_factory=dict)


def read(folder: Path) -> Run:
    """Read a run folder; files that are not there count as empty.

    Raises:
        ValueError: if there is no recipe in it.
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
        evaluation=_object(folder / "evaluation.json"),
    )


def write(folder: str | Path) -> Path:
    """Write report.html into a run folder, and return the file.

    Raises:
        ValueError: if the folder is no run folder.
    """
    folder = Path(folder)
    run = read(folder)
    file = folder / NAME
    partial = file.with_suffix(".partial")
    partial.write_text(page(run, _pictures(run)), encoding="utf-8")
    return partial.replace(file)


def _pictures(run: Run) -> list[Picture]:
    """The most confident mistakes with their images; none where the data has gone since."""
    mistakes = run.evaluation.get("mistakes")
    if not mistakes:
        return []
    try:
        dataset = build_dataset(validated(run.recipe).data, "val")
        images = [dataset[mistake["index"]].image for mistake in mistakes]
    except (ValueError, OSError, IndexError):
        return []
    names = run.evaluation["class_names"]
    return [
        Picture(
            source=data_uri(image),
            name=mistake["name"],
            said=str(names[mistake["predicted"]]),
            truth=str(names[mistake["label"]]),
            confidence=mistake["confidence"],
            small=max(image.shape[1:]) < SMALL,
        )
        for mistake, image in zip(mistakes, images, strict=True)
    ]


def data_uri(image: Tensor) -> str:
    """Pixels uint8 (3, H, W) -> an address that holds the picture itself: PNG where small, else JPEG."""
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().to(torch.uint8).numpy())
    picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    buffer, kind = io.BytesIO(), "png" if max(picture.size) < SMALL else "jpeg"
    picture.save(buffer, kind, **({"quality": 82} if kind == "jpeg" else {}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _object(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _lines(path: Path) -> list[dict[str, Any]]:
    """Objects of a JSON lines file; a last line that was cut off is left out."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
