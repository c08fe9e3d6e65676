"""The report of a segmenter: IoU overall and per class, predicted label maps with the ground truth."""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tetravit.data.datasets import Dataset
from tetravit.data.geometry import Masks, resize, size_of
from tetravit.data.palettes import Colour, palette
from tetravit.draw.label_maps import painted
from tetravit.report.base import Kind
from tetravit.report.charts import Series
from tetravit.report.html import SMALL, Tile, above_chance, card, chart, percent, picture_uri, points, table
from tetravit.report.run import Run

SCORES = {"miou": "Mean IoU", "macc": "Mean accuracy", "aacc": "Pixel accuracy"}


def tiles(run: Run) -> list[Tile]:
    best = run.evaluation
    made: list[Tile] = []
    for name, label in SCORES.items():
        if isinstance(best.get(name), float):
            weights = "EMA weights" if best.get("weights") == "ema" else "weights"
            detail = f"{weights} of step {best['step']:,}" if not made else "of the same weights"
            good = not made and above_chance(best[name], len(best.get("class_names", ())))
            made.append(Tile(label, percent(best[name]), detail, good))
    if best.get("count"):
        made.append(Tile("Scored on", f"{best['count']:,}", "images"))
    return made


def charts(run: Run) -> list[str]:
    series = [
        Series("validation", points(run.evaluations, "miou", 100), 1),
        Series("EMA weights", points(run.evaluations, "ema_miou", 100), 2),
    ]
    return [chart("Mean IoU", series, unit="%")]


def sections(run: Run) -> list[str]:
    return [*_galleries(run), _classes(run.evaluation), _unknown(run.evaluation)]


def _classes(evaluation: Mapping[str, Any]) -> str:
    """Every class by increasing IoU; those without pixels last."""
    if "iou" not in evaluation:
        return ""
    iou, accuracy, pixels = (evaluation[name] for name in ("iou", "accuracy", "pixels"))
    names, total = evaluation["class_names"], max(1, sum(pixels))
    order = sorted(range(len(iou)), key=lambda i: (iou[i] is None, iou[i] or 0))
    rows = [
        [str(names[i]), percent(iou[i]), percent(accuracy[i]), f"{100 * pixels[i] / total:.2f} %"]
        for i in order
    ]
    body = table(["class", "IoU", "accuracy", "pixels"], rows, numbers=1)
    note = "Accuracy: recall of its pixels. Pixels: its share of all labelled pixels."
    return card("Classes, weakest first", f'<div class="tall">{body}</div>', note)


def _unknown(evaluation: Mapping[str, Any]) -> str:
    """Files with labels outside the classes."""
    unknown = evaluation.get("unknown")
    if not unknown:
        return ""
    rows = [[name, f"{count:,}"] for name, count in sorted(unknown.items(), key=lambda e: -e[1])]
    body = f'<div class="tall">{table(["file", "pixels"], rows, numbers=1)}</div>'
    return card("Labels that are no class", body, "They are left out of every figure.")


def _galleries(run: Run) -> list[str]:
    """The hardest and the first images; empty if the data no longer exist."""
    pictures = run.evaluation.get("pictures")
    dataset = run.validation_set() if pictures else None
    if not pictures or dataset is None:
        return []
    names = [str(name) for name in run.evaluation["class_names"]]
    colours = palette(names)
    cards = []
    for heading, key in (("Hardest images", "hardest"), ("First images", "first")):
        try:
            figures = [_triple(dataset, entry, colours) for entry in pictures.get(key, ())]
        except (ValueError, OSError, IndexError):
            return []
        if figures:
            seen = sorted({label for _, labels in figures for label in labels})
            legend = "".join(_entry(names[i], colours[i]) for i in seen if i < len(names))
            body = "".join(text for text, _ in figures)
            note = "Image, prediction, ground truth; below, the pixel accuracy."
            legend = f'<div class="legend">{legend}</div>'
            cards.append(card(heading, f'{legend}<div class="triples">{body}</div>', note))
    return cards


def _entry(name: str, colour: Colour) -> str:
    return f'<span><i class="swatch" style="background: rgb{colour}"></i>{escape(name)}</span>'


def _triple(dataset: Dataset, entry: Mapping[str, Any], colours: Sequence[Colour]) -> tuple[str, set[int]]:
    """An image, its prediction and its ground truth side by side, with a legend."""
    sample = dataset[entry["index"]]
    predicted = _decoded(entry["map"])
    truth = resize(Masks(sample.target), size_of(predicted), antialias=False).values
    image = resize(sample.image, size_of(predicted), antialias=True)
    small = " class=small" if max(predicted.shape) < SMALL else ""
    name = escape(entry["name"])
    views = [
        (Image.fromarray(image.permute(1, 2, 0).numpy()), "image"),
        (painted(image, predicted, colours), "prediction"),
        (painted(image, truth, colours), "truth"),
    ]
    images = "".join(
        f'<img{small} src="{picture_uri(picture)}" alt="{name}: {title}">' for picture, title in views
    )
    caption = f"{percent(entry['accuracy'])} <small>{name}</small>"
    figure = f"<figure><div>{images}</div><figcaption>{caption}</figcaption></figure>"
    present = {*predicted.unique().tolist(), *truth.unique().tolist()}
    return figure, {label for label in present if 0 <= label < len(colours)}


def _decoded(text: str) -> Tensor:
    """The label map of a PNG in base64, uint8 (height, width)."""
    with Image.open(io.BytesIO(base64.b64decode(text))) as picture:
        return torch.from_numpy(np.array(picture))


REPORTS = {"segment": Kind("Segment your own images", tiles, charts, sections)}
