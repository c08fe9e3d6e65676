"""The report of a detector: AP overall and per class, precision-recall curves, drawn detections."""

from collections.abc import Mapping
from html import escape
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from tetravit.data.build import as_trained
from tetravit.data.datasets import Dataset
from tetravit.data.loader import TrainLoader, make_train_loader
from tetravit.data.masks import inside_columns
from tetravit.data.palettes import palette
from tetravit.draw.objects import outlined
from tetravit.recipe import validated
from tetravit.report.base import Kind
from tetravit.report.charts import Series
from tetravit.report.html import Tile, card, chart, pair, percent, picture_uri, points, table
from tetravit.report.maps import Maps, false_detections
from tetravit.report.run import Run
from tetravit.rle import decode_rle
from tetravit.structures import Target

KINDS = {"box": "Boxes", "mask": "Masks"}
FIGURES = {
    "ap": "AP",
    "ap50": "AP at IoU 0.50",
    "ap75": "AP at IoU 0.75",
    "ap_small": "AP of small objects",
    "ap_medium": "AP of medium objects",
    "ap_large": "AP of large objects",
    "ar1": "recall, 1 detection per image",
    "ar10": "recall, 10 detections",
    "ar100": "recall, 100 detections",
    "ar_small": "recall of small objects",
    "ar_medium": "recall of medium objects",
    "ar_large": "recall of large objects",
}
FIRST = 6  # number of training images drawn
STEPPED = 4  # number of validation images with boxes drawn layer by layer
MAPPED = 4  # number of false detections with a map
LEAST_AP = 0.05  # AP from which the first tile is green


def tiles(run: Run) -> list[Tile]:
    best = run.evaluation
    made: list[Tile] = []
    for name, label in (("mask_ap", "Mask AP"), ("box_ap", "Box AP"), ("box_ap50", "Box AP50")):
        if isinstance(best.get(name), float):
            weights = "EMA weights" if best.get("weights") == "ema" else "weights"
            detail = f"{weights} of step {best['step']:,}" if not made else "of the same weights"
            good = not made and best[name] >= LEAST_AP
            made.append(Tile(label, percent(best[name]), detail, good))
    if best.get("count"):
        made.append(Tile("Scored on", f"{best['count']:,}", f"images, {best['objects']:,} objects"))
    return made


def charts(run: Run) -> list[str]:
    """The EMA weights if there are any, else the weights."""
    series: list[Series] = []
    for kind, label in KINDS.items():
        line = points(run.evaluations, f"ema_{kind}_ap", 100) or points(run.evaluations, f"{kind}_ap", 100)
        series.append(Series(label.lower(), line, len(series) + 1))
    return [chart("Average precision", series, unit="%")]


def sections(run: Run) -> list[str]:
    evaluation = run.evaluation
    dataset = run.validation_set() if evaluation.get("pictures") else None
    loader = _loader(run)
    return [
        *_found(run, dataset),
        pair(_figures(evaluation), _curves(evaluation)),
        _classes(evaluation),
        _given(run, loader),
        _left_out(None if loader is None else loader.dataset, dataset),
    ]


def _figures(evaluation: Mapping[str, Any]) -> str:
    figures = evaluation.get("figures")
    if not figures:
        return ""
    rows = [
        [label, *(percent(part[name]) if name in part else "-" for part in figures.values())]
        for name, label in FIGURES.items()
    ]
    body = table(["", *(KINDS[kind].lower() for kind in figures)], rows, numbers=1)
    return card("COCO metrics", body, "Small: an area below 32 x 32 pixels; large: 96 x 96 or more.")


def _curves(evaluation: Mapping[str, Any]) -> str:
    """Precision-recall curves, averaged over classes."""
    curves = evaluation.get("curves", {})
    wanted = [*((kind, "0.50") for kind in curves), *((kind, "0.75") for kind in list(curves)[-1:])]
    series: list[Series] = []
    for kind, overlap in wanted:
        line = [(float(i), 100 * value) for i, value in enumerate(curves[kind][overlap])]
        series.append(Series(f"{KINDS[kind].lower()} at IoU {overlap}", line, len(series) + 1))
    return chart("Precision over recall, in percent", series, unit="%", over="recall")


def _classes(evaluation: Mapping[str, Any]) -> str:
    """Every class by increasing AP; those without objects last."""
    rows = evaluation.get("classes")
    if not rows:
        return ""
    names = evaluation["class_names"]
    kinds = [kind for kind in KINDS if f"{kind}_ap" in rows[0]]
    key = f"{kinds[-1]}_ap"
    order = sorted(range(len(rows)), key=lambda i: (rows[i][key] is None, rows[i][key] or 0))
    columns = [f"{kind}_{name}" for kind in kinds for name in ("ap", "ap50", "ar100")]
    lines = [
        [str(names[i]), *(_share(rows[i][c]) for c in columns), f"{rows[i]['objects']:,}"] for i in order
    ]
    heads = [c.replace("_ap", " AP").replace("_ar", " AR") for c in columns]
    body = table(["class", *heads, "objects"], lines, numbers=1)
    return card("Classes, weakest first", f'<div class="tall">{body}</div>')


def _found(run: Run, dataset: Dataset | None) -> list[str]:
    """Validation images with predictions and ground truth; empty if the data no longer exist."""
    entries = run.evaluation.get("pictures")
    if not entries or dataset is None:
        return []
    names = [str(name) for name in run.evaluation["class_names"]]
    try:
        figures = [_pair(dataset, entry, names) for entry in entries]
    except (ValueError, OSError, IndexError):
        return []
    note = "Prediction and ground truth."
    cards = [card("Validation images", f'<div class="triples two">{"".join(figures)}</div>', note)]
    moving = [_steps(dataset, entry, names) for entry in entries if any(entry.get("steps", ()))]
    if moving:
        note = (
            "The boxes of the detections above, layer by layer of the decoder: from the encoder's proposals, palest,"
            " to the last layer."
        )
        body = f'<div class="triples two">{"".join(moving[:STEPPED])}</div>'
        cards.append(card("Boxes over the layers", body, note))
    return [*cards, _mistakes(run, dataset, entries, names)]


def _steps(dataset: Dataset, entry: Mapping[str, Any], names: list[str]) -> str:
    """An image with the boxes of its detections before and after each layer, and the distance moved per layer."""
    image = dataset[entry["index"]].image
    colours = palette(names)
    detections, steps = entry["detections"], entry["steps"]
    boxes, shades, captions = [], [], []
    for i, layer in enumerate(steps):
        share = (i + 1) / len(steps)
        for k, box in enumerate(layer):
            red, green, blue = (round(255 - share * (255 - c)) for c in colours[detections["labels"][k]])
            boxes.append(box)
            shades.append((red, green, blue))
            captions.append(names[detections["labels"][k]] if i == len(steps) - 1 else "")
    name = escape(entry["name"])
    picture = picture_uri(outlined(image, boxes, captions, shades))
    moves = [
        sum(abs(a - b) for x, y in zip(before, after, strict=True) for a, b in zip(x, y, strict=True))
        / (4 * len(after))
        for before, after in pairwise(steps)
    ]
    distances = ", ".join(f"{move:.1f}" for move in moves)
    return (
        f'<figure><div><img src="{picture}" alt="{name}: boxes over the layers"></div>'
        f"<figcaption>moved by {distances} pixels <small>{name}</small></figcaption></figure>"
    )


def _mistakes(run: Run, dataset: Dataset, entries: list[Mapping[str, Any]], names: list[str]) -> str:
    """The most confident detections without an object, each with its attribution map."""
    maps, figures = Maps(run), []
    for entry, i in false_detections(entries, MAPPED):
        image, detections = dataset[entry["index"]].image, entry["detections"]
        label, box = detections["labels"][i], detections["boxes"][i]
        beside = maps.of_detection(image, label, box, entry["name"])
        if not beside:
            continue
        said = f"{names[label]} {100 * detections['scores'][i]:.0f} %"
        picture = outlined(image, [box], [said], [palette(names)[label]])
        name = escape(entry["name"])
        views = f'<img src="{picture_uri(picture)}" alt="{name}">{beside}'
        figures.append(
            f"<figure><div>{views}</div><figcaption>{escape(said)} <small>{name}</small></figcaption></figure>"
        )
    if not figures:
        return ""
    note = f"Detections without an object of their class, and what their class depends on: {maps.method}."
    body = f'<div class="triples two">{"".join(figures)}</div>'
    return card("Most confident false detections", body, note)


def _pair(dataset: Dataset, entry: Mapping[str, Any], names: list[str]) -> str:
    image = dataset[entry["index"]].image
    colours = palette(names)
    name = escape(entry["name"])
    views = []
    for part, title in ((entry["detections"], "prediction"), (entry["truth"], "truth")):
        scores = part.get("scores")
        captions = [
            names[k] if scores is None else f"{names[k]} {100 * scores[i]:.0f} %"
            for i, k in enumerate(part["labels"])
        ]
        height = entry["size"][0]
        masks = [inside_columns(decode_rle(m.encode("ascii")), height) for m in part["masks"] or ()]
        picture = outlined(image, part["boxes"], captions, [colours[k] for k in part["labels"]], masks)
        views.append(f'<img src="{picture_uri(picture)}" alt="{name}: {title}">')
    count = len(entry["detections"]["labels"])
    caption = f"{count} predicted, {len(entry['truth']['labels'])} true <small>{name}</small>"
    return f"<figure><div>{''.join(views)}</div><figcaption>{caption}</figcaption></figure>"


def _left_out(training: Dataset | None, validation: Dataset | None) -> str:
    """Data that was left out; empty if there is none."""
    rows = []
    for part, dataset in (("training", training), ("validation", validation)):
        rows += [[part, line] for line in (dataset.info.problems if dataset else ())]
    return card("Left out of the data", table(["part", "what"], rows, numbers=2)) if rows else ""


def _loader(run: Run) -> TrainLoader | None:
    """The training set of the run; None if it no longer exists."""
    try:
        recipe = validated(run.recipe)
        data = as_trained(recipe.data, recipe.model.head).model_copy(update={"workers": 0})
        return make_train_loader(data, seed=recipe.run.seed, accumulate=recipe.run.accumulate)
    except (ValueError, OSError):
        return None


def _given(run: Run, loader: TrainLoader | None) -> str:
    """The first training images after augmentation, with their targets, to check for errors such as a wrong class
    order."""
    if loader is None:
        return ""
    recipe = validated(run.recipe)
    try:
        batch = next(loader.batches())[0]
    except (ValueError, OSError):
        return ""
    names = [str(name) for name in loader.dataset.class_names]
    sizes = batch.sizes.tolist() if batch.sizes is not None else [batch.images.shape[2:]] * len(batch)
    mean, std = (
        torch.tensor(v)[:, None, None] for v in (recipe.data.preprocess.mean, recipe.data.preprocess.std)
    )
    figures = []
    for i, (height, width) in enumerate(sizes[:FIRST]):
        pixels = (batch.images[i, :, :height, :width] * std + mean).clamp(0, 1) * 255
        figures.append(_annotated(pixels.round().byte(), batch.targets[i], batch.names[i], names))
    note = "After the augmentations of the recipe, with their targets."
    return card("First training images", f'<div class="triples one">{"".join(figures)}</div>', note)


def _annotated(image: Tensor, target: Target, name: str, names: list[str]) -> str:
    labels, colours = target.labels.tolist(), palette(names)
    crowd = target.crowd.tolist() if target.crowd is not None else [False] * len(labels)
    captions = [names[k] + (" (crowd)" if many else "") for k, many in zip(labels, crowd, strict=True)]
    masks = (
        []
        if target.masks is None
        else [(0, m[: image.shape[1], : image.shape[2]]) for m in target.masks.numpy()]
    )
    picture = outlined(image, target.boxes.tolist(), captions, [colours[k] for k in labels], masks)
    shown = f'<img src="{picture_uri(picture)}" alt="{escape(name)}">'
    return f"<figure><div>{shown}</div><figcaption><small>{escape(name)}</small></figcaption></figure>"


def _share(value: float | None) -> str:
    return "-" if value is None else percent(value)


REPORTS = {"detect": Kind("Find objects in your own images", tiles, charts, sections)}
