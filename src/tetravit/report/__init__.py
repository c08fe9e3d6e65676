"""A run folder -> report.html: one file that shows what was trained, how it went and where it fails.

The page needs nothing but itself: no network, no fonts, no library. What a run folder lacks is left out.
"""

import base64
import io
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from tetravit.report.page import Picture, page

NAME = "report.html"
PICTURE_SIDE = 224  # pixels; larger images are shrunk, so that the file stays small


@dataclass(frozen=True)
class Run:
    """What a run folder says.

    steps, evaluations: records of metrics.jsonl. timing: records of timing.jsonl.
    """

    folder: Path
    recipe: dict[str, Any] = field(default_factory=dict)
    recipe_text: str = ""
    info: dict[str, Any] = field(default_factory=dict)
    steps: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    timing: list[dict[str, Any]] = field(default_factory=list)


def read(folder: Path) -> Run:
    """Read a run folder; files that are not there count as empty.

    Raises:
        ValueError: if there is no recipe in it.
    """
    recipe = folder / "recipe.toml"
    if not recipe.is_file():
        raise ValueError(f"{str(folder)!r} is no run folder: it has no recipe.toml.")
    text = recipe.read_text(encoding="utf-8")
    info = folder / "run.json"
    rows = _lines(folder / "metrics.jsonl")
    return Run(
        folder=folder,
        recipe=tomllib.loads(text),
        recipe_text=text,
        info=json.loads(info.read_text()) if info.is_file() else {},
        steps=[row for row in rows if row.get("event") == "step"],
        evaluations=[row for row in rows if row.get("event") == "evaluation"],
        timing=_lines(folder / "timing.jsonl"),
    )


def write(folder: str | Path, findings: Mapping[str, Any] | None = None, dataset: Any = None) -> Path:
    """Write report.html into a run folder.

    Args:
        folder: the run folder.
        findings: what the task saw when it scored the best weights; None: they are scored now, where they are.
        dataset: the set that was scored, for names and pictures; given with `findings`.

    Returns:
        The file.

    Raises:
        ValueError: if the folder is no run folder, or its weights or data are not what its recipe says.
    """
    folder = Path(folder)
    run = read(folder)
    if findings is None and (folder / "best.safetensors").is_file():
        from tetravit.evaluate import evaluate

        result = evaluate(folder)
        findings, dataset = result.findings, result.dataset
    pictures = _pictures(findings or {}, dataset)
    classes = [str(name) for name in getattr(dataset, "class_names", [])]
    file = folder / NAME
    partial = file.with_suffix(".partial")
    partial.write_text(page(run, findings or {}, classes, pictures), encoding="utf-8")
    return partial.replace(file)


def _pictures(findings: Mapping[str, Any], dataset: Any) -> list[Picture]:
    """The most confident mistakes, with their images."""
    pictures = []
    for mistake in findings.get("mistakes", []):
        image = dataset[mistake["index"]].image
        pictures.append(
            Picture(
                source=data_uri(image),
                name=mistake["name"],
                said=str(dataset.class_names[mistake["predicted"]]),
                truth=str(dataset.class_names[mistake["label"]]),
                confidence=mistake["confidence"],
                small=max(image.shape[1:]) < 64,
            )
        )
    return pictures


def data_uri(image: Tensor) -> str:
    """Pixels uint8 (3, H, W) -> an address that holds the picture itself: PNG where small, else JPEG."""
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().to(torch.uint8).numpy())
    picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    buffer, kind = io.BytesIO(), "png" if max(picture.size) < 64 else "jpeg"
    picture.save(buffer, kind, **({"quality": 82} if kind == "jpeg" else {}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


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
