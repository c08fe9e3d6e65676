"""The report of a self-supervised run: k-NN, collapse diagnostics, nearest neighbours, a map of the features."""

from collections.abc import Mapping
from html import escape
from typing import Any

from tetravit.data.datasets import Dataset
from tetravit.report.base import Kind
from tetravit.report.charts import Series
from tetravit.report.html import SMALL, Tile, above_chance, card, chart, data_uri, percent, points
from tetravit.report.run import Run

SCORES = {"knn": "k-NN", "linear": "Linear probe"}  # scores of features, by the start of their names
NAMED = 20  # maximum number of classes with names on the map
MAP_SIDE = 520  # size of the map's view box
MARGIN = 14


def tiles(run: Run) -> list[Tile]:
    best, tiles = run.evaluation, []
    for name in _scores(best):
        good = above_chance(best[name], len(best.get("class_names", ())))
        tiles.append(Tile(_title(name), percent(best[name]), f"top-1, step {best['step']:,}", good))
    if run.steps and "information" in run.steps[-1]:
        tiles.append(Tile("Information", f"{run.steps[-1]['information']:.3g}", "nats, at the last step"))
    return tiles


def charts(run: Run) -> list[str]:
    names = list(dict.fromkeys(name for row in run.evaluations for name in _scores(row)))
    series = [Series(_title(n), points(run.evaluations, n, 100), i + 1) for i, n in enumerate(names[:3])]

    def logged(**names: str) -> list[Series]:
        return [Series(text, points(run.steps, n), i + 1) for i, (n, text) in enumerate(names.items())]

    return [
        chart("Top-1 accuracy of the features", series, unit="%"),
        chart(
            "Teacher's assignments, nats",
            logged(
                information="information",
                mean_entropy="entropy of the mean",
                teacher_entropy="entropy of an image",
            ),
        ),
        chart("Features", logged(feature_spread="spread", agreement="agreement of two views")),
        chart("Centre", logged(center_norm="norm", center_max="largest value")),
    ]


def sections(run: Run) -> list[str]:
    return [_neighbours(run), _map(run.evaluation)]


def _scores(values: Mapping[str, Any]) -> list[str]:
    """Names of top-1 scores: knn_20, linear."""
    return [
        name
        for name in values
        if name.removeprefix("ema_").split("_")[0] in SCORES and not name.endswith(("_top5", "_best"))
    ]


def _title(name: str) -> str:
    plain = name.removeprefix("ema_")
    kind, _, k = plain.partition("_")
    title = SCORES[kind] + (f", k = {k}" if k else "")
    return title if plain == name else f"{title}, EMA weights"


def _neighbours(run: Run) -> str:
    """Validation images with their nearest training images; empty if the data no longer exist."""
    rows = run.evaluation.get("neighbours")
    validation = run.dataset("val") if rows else None
    train = run.dataset("train") if rows else None
    if not rows or validation is None or train is None:
        return ""
    names = [str(name) for name in run.evaluation["class_names"]]
    try:
        strips = [_strip(row, validation, train, names) for row in rows]
    except (ValueError, OSError, IndexError):
        return ""
    note = "Each row: a validation image, then the training images with the most similar features (cosine)."
    return card("Nearest neighbours", f'<div class="strips">{"".join(strips)}</div>', note)


def _strip(row: Mapping[str, Any], validation: Dataset, train: Dataset, names: list[str]) -> str:
    def figure(dataset: Dataset, entry: Mapping[str, Any], text: str) -> str:
        image, name = dataset[entry["index"]].image, escape(entry["name"])
        small = " class=small" if max(image.shape[1:]) < SMALL else ""
        return f'<figure><img{small} src="{data_uri(image)}" alt="{name}"><figcaption>{text}</figcaption></figure>'

    first = figure(validation, row, f"<b>{escape(names[row['label']])}</b>")
    others = []
    for entry in row["neighbours"]:
        kind = "is" if entry["label"] == row["label"] else "said"
        text = f'<span class="{kind}">{escape(names[entry["label"]])}</span> {entry["similarity"]:.3f}'
        others.append(figure(train, entry, text))
    return f'<div class="strip">{first}{"".join(others)}</div>'


def _map(evaluation: Mapping[str, Any]) -> str:
    """Scatter plot of the first two principal components of the features, coloured by class."""
    rows = evaluation.get("map")
    if not rows:
        return ""
    names = [str(name) for name in evaluation["class_names"]]
    xs, ys = [row[0] for row in rows], [row[1] for row in rows]
    scale = (MAP_SIDE - 2 * MARGIN) / (max(max(xs) - min(xs), max(ys) - min(ys)) or 1)
    width, height = ((max(v) - min(v)) * scale + 2 * MARGIN for v in (xs, ys))

    def at(x: float, y: float) -> tuple[float, float]:
        return MARGIN + (x - min(xs)) * scale, height - MARGIN - (y - min(ys)) * scale

    marks, places = [], {}  # type: list[str], dict[int, list[tuple[float, float]]]
    for x, y, label in rows:
        a, b = at(x, y)
        places.setdefault(label, []).append((a, b))
        style = f"fill: {_colour(label, len(names))}"
        circle = f'<circle class="dot" cx="{a:.1f}" cy="{b:.1f}" r="3" style="{style}"/>'
        marks.append(f"<g><title>{escape(names[label])}</title>{circle}</g>")
    if len(names) <= NAMED:
        for label, positions in sorted(places.items()):
            a, b = (sum(values) / len(positions) for values in zip(*positions, strict=True))
            marks.append(f'<text class="name" x="{a:.1f}" y="{b:.1f}">{escape(names[label])}</text>')
    picture = f'<svg class="map" viewBox="0 0 {width:.0f} {height:.0f}" role="img">{"".join(marks)}</svg>'
    note = f"First two principal components of {len(rows):,} validation images; colours are classes."
    return card("Map of the features", picture, note)


def _colour(label: int, classes: int) -> str:
    return f"hsl({360 * label / max(1, classes):.0f} 65% 50%)"


REPORTS = {
    "dino": Kind(
        "Features of your own images",
        tiles,
        charts,
        sections,
        command="embed {run} IMAGE_OR_FOLDER --out features.npz",
    )
}
