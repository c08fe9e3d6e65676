"""The parts of a report as HTML; everything a user wrote is escaped."""

from __future__ import annotations

import datetime
import math
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tetravit.report.charts import Point, Series, line_chart, number, smooth, thin

if TYPE_CHECKING:
    from tetravit.report import Run

HERE = Path(__file__).parent
MATRIX_CLASSES = 30  # up to here the whole confusion matrix is shown, above that the classes most confused
LISTED = 12  # rows of a table of classes or pairs


@dataclass(frozen=True)
class Picture:
    """An image that the model got wrong. source: an address; small: enlarged without smoothing."""

    source: str
    name: str
    said: str
    truth: str
    confidence: float
    small: bool


def page(run: Run, pictures: Sequence[Picture]) -> str:
    """The whole document."""
    parts = [
        _header(run),
        _tiles(run),
        _curves(run),
        _confusion(run.evaluation),
        _gallery(pictures, run.evaluation),
        _commands(run),
        _pair(_recipe(run), _environment(run)),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title(run))}</title><style>{(HERE / 'page.css').read_text()}</style></head>"
        f"<body><main>{''.join(parts)}</main><script>{(HERE / 'page.js').read_text()}</script></body></html>\n"
    )


def title(run: Run) -> str:
    model, data = (run.recipe.get(section, {}).get("name", "?") for section in ("model", "data"))
    return f"{model} on {data}"


def _header(run: Run) -> str:
    about = [run.recipe.get("task", {}).get("name"), run.folder.name, _when(run.info.get("end"))]
    line = " &middot; ".join(escape(str(part)) for part in about if part)
    return f'<header><h1>{escape(title(run))}</h1><p class="sub">{line}</p></header>'


def _tiles(run: Run) -> str:
    tiles: list[tuple[str, str, str]] = []
    best = run.evaluation
    if "top1" in best:
        weights = "averaged weights" if best.get("weights") == "ema" else "weights"
        tiles.append(("Top-1 accuracy", _percent(best["top1"]), f"{weights} of step {best['step']:,}"))
    if best.get("top5", 1) < 1:
        tiles.append(("Top-5 accuracy", _percent(best["top5"]), "of the same weights"))
    if "loss" in best:
        tiles.append(("Validation loss", number(best["loss"]), "of the same weights"))
    if "top1" in best and best.get("count"):
        wrong = round((1 - best["top1"]) * best["count"])
        tiles.append(("Mistakes", f"{wrong:,}", f"of {best['count']:,} images"))
    if run.steps:
        last = run.steps[-1]
        tiles.append(("Steps", f"{last['step']:,}", f"{last['epoch']:.4g} epochs"))
    rates = sorted(row["images_per_s"] for row in run.timing if row.get("images_per_s"))
    if rates:
        seconds = max(row["seconds"] for row in run.timing if "images_per_s" in row)
        tiles.append(("Time", duration(seconds), f"{rates[len(rates) // 2]:,.0f} images/s, median"))
    cells = [
        f'<div class="tile{" first" if i == 0 else ""}"><div class="label">{escape(label)}</div>'
        f'<div class="value">{escape(value)}</div><div class="detail">{escape(detail)}</div></div>'
        for i, (label, value, detail) in enumerate(tiles)
    ]
    return f'<div class="tiles">{"".join(cells)}</div>'


def _curves(run: Run) -> str:
    loss = _points(run.steps, "loss")
    charts = [
        _chart(
            "Loss",
            [
                Series("training", smooth(loss), 3, thin(loss, 400)),
                Series("validation", _points(run.evaluations, "loss"), 1),
                Series("averaged weights", _points(run.evaluations, "ema_loss"), 2),
            ],
            log=True,
        ),
        _chart(
            "Top-1 accuracy",
            [
                Series("validation", _points(run.evaluations, "top1", 100), 1),
                Series("averaged weights", _points(run.evaluations, "ema_top1", 100), 2),
            ],
            unit="%",
        ),
        _chart("Learning rate", [Series("learning rate", thin(_points(run.steps, "lr"), 300), 1)]),
        _chart("Speed", [Series("images/s", thin(_points(run.timing, "images_per_s"), 300), 1)]),
    ]
    charts = [chart for chart in charts if chart]
    return _pair(*charts[:2]) + _pair(*charts[2:])


def _chart(heading: str, series: Sequence[Series], *, unit: str = "", log: bool = False) -> str:
    """A card with a chart and its legend; nothing where no series has a point."""
    series = [s for s in series if s.points]
    if not series:
        return ""
    log = log and all(y > 0 for s in series for _, y in (*s.points, *s.cloud))
    legend = "".join(
        f'<span><i class="key tone{s.tone}"></i>{escape(s.name)} <b>{number(s.points[-1][1])}{unit}</b></span>'
        for s in series
    )
    return _card(heading, f'<div class="legend">{legend}</div>{line_chart(series, unit=unit, log=log)}')


def _points(rows: Iterable[Mapping[str, Any]], name: str, times: float = 1) -> list[Point]:
    return [
        (row["step"], row[name] * times)
        for row in rows
        if isinstance(row.get(name), int | float) and math.isfinite(row[name])
    ]


def _confusion(evaluation: Mapping[str, Any]) -> str:
    table = evaluation.get("confusion")
    if not table:
        return ""
    classes = [str(name) for name in evaluation["class_names"]]
    if "pairs" in table:
        pairs, recall = table["pairs"], table["recall"]
        return _pair(_confused(pairs, classes), _weakest(recall, classes))
    matrix = table["matrix"]
    K = len(matrix)
    recall = [row[i] / max(1, sum(row)) for i, row in enumerate(matrix)]
    if K <= MATRIX_CLASSES:
        return _pair(_matrix(matrix, classes), _per_class(matrix, recall, classes))
    cells = [(i, j, matrix[i][j]) for i in range(K) for j in range(K) if i != j and matrix[i][j]]
    return _pair(_confused(sorted(cells, key=lambda c: -c[2]), classes), _weakest(recall, classes))


def _matrix(matrix: Sequence[Sequence[int]], classes: Sequence[str]) -> str:
    """Counts as a heat map: right answers in one colour, wrong ones in another, each by its own range."""
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
            says = f"{count} of class {classes[i]} called {classes[j]}"
            style = f"background: rgba(var({tone}), {0.15 + 0.45 * share:.2f})"
            cells.append(f'<td title="{escape(says)}" style="{style}">{count}</td>')
        rows.append(f'<tr><th class="name">{escape(classes[i])}</th>{"".join(cells)}</tr>')
    note = "Rows: the class an image is of. Columns: what the model says."
    return _card(
        "Confusion matrix", f'<div class="scroll"><table class="matrix">{"".join(rows)}</table></div>', note
    )


def _per_class(matrix: Sequence[Sequence[int]], recall: Sequence[float], classes: Sequence[str]) -> str:
    called = [sum(row[j] for row in matrix) for j in range(len(matrix))]
    order = sorted(range(len(matrix)), key=lambda i: recall[i])
    rows = [
        [
            classes[i],
            _percent(recall[i]),
            _percent(matrix[i][i] / called[i]) if called[i] else "-",
            f"{sum(matrix[i]):,}",
        ]
        for i in order
    ]
    note = "Found: share of its images that get its name. Right: share of its name that is given rightly."
    return _card(
        "Classes, weakest first", _table(["class", "found", "right", "images"], rows, numbers=1), note
    )


def _confused(pairs: Sequence[Sequence[int]], classes: Sequence[str]) -> str:
    rows = [[classes[i], classes[j], f"{count:,}"] for i, j, count in pairs[:LISTED]]
    return _card("Most confused", _table(["image of", "called", "times"], rows, numbers=2))


def _weakest(recall: Sequence[float], classes: Sequence[str]) -> str:
    order = sorted(range(len(recall)), key=lambda i: recall[i])[:LISTED]
    return _card(
        "Weakest classes", _table(["class", "found"], [[classes[i], _percent(recall[i])] for i in order], 1)
    )


def _gallery(pictures: Sequence[Picture], evaluation: Mapping[str, Any]) -> str:
    if not pictures:
        if evaluation.get("mistakes") != []:
            return ""
        return _card("Most confident mistakes", '<p class="sub">None: every image is classified rightly.</p>')
    figures = [
        f'<figure><img{" class=small" if p.small else ""} src="{p.source}" alt="{escape(p.name)}">'
        f'<figcaption><span class="said">{escape(p.said)}</span> {100 * p.confidence:.1f} %<br>'
        f'is <span class="is">{escape(p.truth)}</span><br><small>{escape(p.name)}</small></figcaption></figure>'
        for p in pictures
    ]
    note = "What the model says and how sure it is, what the image is, and its name."
    return _card("Most confident mistakes", f'<div class="pictures">{"".join(figures)}</div>', note)


def _commands(run: Run) -> str:
    folder = shlex.quote(str(run.folder))
    epochs = run.recipe.get("epochs")
    lines = [
        ("Classify your own images", f"tetravit predict {folder} IMAGE_OR_FOLDER"),
        ("Repeat this run", f"tetravit train {shlex.quote(str(run.folder / 'recipe.toml'))}"),
    ]
    if isinstance(epochs, int | float):
        longer = f"tetravit train {shlex.quote(str(run.folder / 'recipe.toml'))} epochs={epochs * 2:g}"
        lines.insert(1, ("Next to try: twice as long", longer))
    blocks = [
        f'<div><p class="sub">{escape(what)}</p><div class="command"><pre>{escape(command)}</pre>'
        '<button type="button">Copy</button></div></div>'
        for what, command in lines
    ]
    return _card("Go on", f'<div class="stack">{"".join(blocks)}</div>')


def _recipe(run: Run) -> str:
    text = re.sub(
        r"(?m)^(\s*#.*)$", r'<span class="comment">\1</span>', escape(run.recipe_text.strip(), quote=False)
    )
    return _card(
        "Recipe", f"<pre>{text}</pre>", "Every value, defaults included: recipe.toml in the run folder."
    )


def _environment(run: Run) -> str:
    if not run.info:
        return ""
    rows = "".join(
        f"<tr><th>{escape(str(key))}</th><td>{escape(_plain(value))}</td></tr>"
        for key, value in run.info.items()
        if value not in (None, "", [], {})
    )
    return _card("Environment", f'<table class="plain">{rows}</table>')


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(entry)}" for key, entry in value.items())
    if isinstance(value, list):
        return " ".join(shlex.quote(str(entry)) for entry in value)
    return _when(value) if isinstance(value, str) else str(value)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], numbers: int) -> str:
    """A plain table whose columns from `numbers` on align right."""

    def cells(tag: str, row: Sequence[str]) -> str:
        kind: Callable[[int], str] = lambda j: ' class="num"' if j >= numbers else ""  # noqa: E731
        return "".join(f"<{tag}{kind(j)}>{escape(cell)}</{tag}>" for j, cell in enumerate(row))

    lines = [cells("th", columns), *(cells("td", row) for row in rows)]
    return f'<table class="plain">{"".join(f"<tr>{line}</tr>" for line in lines)}</table>'


def _card(heading: str, body: str, note: str = "") -> str:
    note = f'<p class="note">{escape(note)}</p>' if note else ""
    return f'<section class="card"><h2>{escape(heading)}</h2>{note}{body}</section>'


def _pair(*cards: str) -> str:
    cards = tuple(card for card in cards if card)
    return f'<div class="pair">{"".join(cards)}</div>' if cards else ""


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %" if share < 1 else "100 %"


def duration(seconds: float) -> str:
    """Seconds as people say them: 48 s, 2 min 5 s, 3 h 20 min."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    minutes, seconds = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s" if seconds else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def _when(text: Any) -> str:
    """An ISO time without its fractions and letters; anything else as it is."""
    try:
        moment = datetime.datetime.fromisoformat(str(text))
    except ValueError:
        return str(text or "")
    return moment.strftime("%Y-%m-%d %H:%M") + (" UTC" if moment.tzinfo == datetime.UTC else "")
