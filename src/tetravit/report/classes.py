"""The report of a classifier: accuracy, confusion matrix, precision and recall, confident mistakes."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from tetravit.data.datasets import Dataset
from tetravit.report.base import Kind
from tetravit.report.charts import Series, number
from tetravit.report.html import (
    SMALL,
    Tile,
    above_chance,
    card,
    chart,
    data_uri,
    pair,
    percent,
    points,
    table,
)
from tetravit.report.maps import Maps
from tetravit.report.run import Run

MATRIX_CLASSES = (
    30  # maximum number of classes for a full confusion matrix; above, only the most confused classes
)
MAPPED = 8  # mistakes with an attribution map
LISTED = 12  # rows of a table of classes or pairs


def tiles(run: Run) -> list[Tile]:
    tiles: list[Tile] = []
    best = run.evaluation
    if "top1" in best:
        weights = "EMA weights" if best.get("weights") == "ema" else "weights"
        good = above_chance(best["top1"], len(best.get("class_names", ())))
        tiles.append(
            Tile("Top-1 accuracy", percent(best["top1"]), f"{weights} of step {best['step']:,}", good)
        )
    if best.get("top5", 1) < 1:
        tiles.append(Tile("Top-5 accuracy", percent(best["top5"]), "of the same weights"))
    if "map" in best:
        tiles.append(
            Tile("Mean average precision", percent(best["map"]), f"weights of step {best['step']:,}")
        )
        tiles.append(Tile("F1", percent(best["f1"]), "mean over the classes, each at its threshold"))
    if "loss" in best:
        tiles.append(Tile("Validation loss", number(best["loss"]), "of the same weights"))
    if "top1" in best and best.get("count"):
        wrong = round((1 - best["top1"]) * best["count"])
        tiles.append(Tile("Mistakes", f"{wrong:,}", f"of {best['count']:,} images"))
    return tiles


def charts(run: Run) -> list[str]:
    series = [
        Series("validation", points(run.evaluations, "top1", 100), 1),
        Series("EMA weights", points(run.evaluations, "ema_top1", 100), 2),
    ]
    if any("map" in row for row in run.evaluations):
        series = [
            Series("validation", points(run.evaluations, "map", 100), 1),
            Series("EMA weights", points(run.evaluations, "ema_map", 100), 2),
        ]
        return [chart("Mean average precision", series, unit="%")]
    return [chart("Top-1 accuracy", series, unit="%")]


def sections(run: Run) -> list[str]:
    return [_confusion(run.evaluation), _several(run.evaluation), _gallery(run)]


def _several(evaluation: Mapping[str, Any]) -> str:
    """Figures of each class where images have several, the lowest average precision first."""
    rows = evaluation.get("classes") or []
    if not rows or any("threshold" not in row for row in rows):
        return ""
    named = sorted(
        zip(map(str, evaluation["class_names"]), rows, strict=True), key=lambda r: r[1]["ap"] or 0.0
    )
    cells = [
        [
            name,
            *("-" if row[key] is None else percent(row[key]) for key in ("ap", "precision", "recall", "f1")),
            "-" if row["threshold"] is None else f"{row['threshold']:.3f}",
            f"{row['images']:,}",
        ]
        for name, row in named
    ]
    head = ["class", "average precision", "precision", "recall", "F1", "threshold", "images"]
    note = "Precision, recall and F1 at the threshold of the probability with the highest F1; prediction uses it."
    return card("Classes", f'<div class="tall">{table(head, cells, numbers=1)}</div>', note)


def _confusion(evaluation: Mapping[str, Any]) -> str:
    table = evaluation.get("confusion")
    if not table:
        return ""
    classes = [str(name) for name in evaluation["class_names"]]
    if "pairs" in table:
        pairs, recall = table["pairs"], table["recall"]
        return pair(_confused(pairs, classes), _weakest(recall, classes))
    matrix = table["matrix"]
    K = len(matrix)
    recall = [row[i] / max(1, sum(row)) for i, row in enumerate(matrix)]
    if K <= MATRIX_CLASSES:
        return pair(_matrix(matrix, classes), _per_class(matrix, recall, classes))
    cells = [(i, j, matrix[i][j]) for i in range(K) for j in range(K) if i != j and matrix[i][j]]
    return pair(_confused(sorted(cells, key=lambda c: -c[2]), classes), _weakest(recall, classes))


def _matrix(matrix: Sequence[Sequence[int]], classes: Sequence[str]) -> str:
    """A confusion matrix as a heat map: diagonal and mistakes in two colours, each with its own range."""
    K = len(matrix)
    most_right = max(max(matrix[i][i] for i in range(K)), 1)
    most_wrong = max(4, *(row[j] for i, row in enumerate(matrix) for j in range(K) if i != j))
    rows = [f"<tr><th></th>{''.join(f'<th>{escape(name)}</th>' for name in classes)}</tr>"]
    for i, row in enumerate(matrix):
        cells = []
        for j, count in enumerate(row):
            if not count:
                cells.append('<td class="zero">0</td>')
                continue
            tone, share = ("--heat", count / most_right) if i == j else ("--miss", count / most_wrong)
            title = f"{count} of class {classes[i]} predicted as {classes[j]}"
            style = f"background: rgba(var({tone}), {0.15 + 0.45 * share:.2f})"
            cells.append(f'<td title="{escape(title)}" style="{style}">{count}</td>')
        rows.append(f'<tr><th class="name">{escape(classes[i])}</th>{"".join(cells)}</tr>')
    note = "Rows: the class of the image. Columns: the predicted class."
    return card(
        "Confusion matrix", f'<div class="scroll"><table class="matrix">{"".join(rows)}</table></div>', note
    )


def _per_class(matrix: Sequence[Sequence[int]], recall: Sequence[float], classes: Sequence[str]) -> str:
    predicted = [sum(row[j] for row in matrix) for j in range(len(matrix))]
    order = sorted(range(len(matrix)), key=lambda i: recall[i])
    rows = [
        [
            classes[i],
            percent(recall[i]),
            percent(matrix[i][i] / predicted[i]) if predicted[i] else "-",
            f"{sum(matrix[i]):,}",
        ]
        for i in order
    ]
    body = table(["class", "recall", "precision", "images"], rows, numbers=1)
    return card("Classes, lowest recall first", f'<div class="tall">{body}</div>')


def _confused(pairs: Sequence[Sequence[int]], classes: Sequence[str]) -> str:
    rows = [[classes[i], classes[j], f"{count:,}"] for i, j, count in pairs[:LISTED]]
    return card("Most confused", table(["class", "predicted as", "images"], rows, numbers=2))


def _weakest(recall: Sequence[float], classes: Sequence[str]) -> str:
    order = sorted(range(len(recall)), key=lambda i: recall[i])[:LISTED]
    return card(
        "Lowest recall", table(["class", "recall"], [[classes[i], percent(recall[i])] for i in order], 1)
    )


def _gallery(run: Run) -> str:
    """The most confident mistakes with their images; empty if the data no longer exist."""
    heading, mistakes = "Most confident mistakes", run.evaluation.get("mistakes")
    if mistakes == []:
        return card(heading, '<p class="sub">None: every image is classified correctly.</p>')
    dataset = run.validation_set() if mistakes else None
    if dataset is None:
        return ""
    try:
        maps = Maps(run)
        names = run.evaluation["class_names"]
        figures = [
            _figure(dataset, mistake, names, maps if i < MAPPED else None)
            for i, mistake in enumerate(mistakes or ())
        ]
    except (ValueError, OSError, IndexError):
        return ""
    note = "Predicted class and probability, true class, file."
    if any(": " + maps.method in figure for figure in figures):
        note += (
            f" The first have a map of what the predicted class depends on: {maps.method}, brighter is more."
        )
    return card(heading, f'<div class="pictures">{"".join(figures)}</div>', note)


def _figure(dataset: Dataset, mistake: Mapping[str, Any], names: Sequence[object], maps: Maps | None) -> str:
    image, name = dataset[mistake["index"]].image, escape(mistake["name"])
    beside = maps.of_class(image, mistake["predicted"], mistake["name"]) if maps is not None else ""
    small = " class=small" if max(image.shape[1:]) < SMALL else ""
    said, truth = (escape(str(names[mistake[key]])) for key in ("predicted", "label"))
    return (
        f'<figure><img{small} src="{data_uri(image)}" alt="{name}">{beside}'
        f'<figcaption><span class="said">{said}</span> {100 * mistake["confidence"]:.1f} %<br>'
        f'true: <span class="is">{truth}</span><br><small>{name}</small></figcaption></figure>'
    )


REPORTS = {"classify": Kind("Classify your own images", tiles, charts, sections)}
