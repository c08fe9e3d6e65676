"""The page: parts of every report, and those of one kind of model."""

import datetime
import re
import shlex
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from tetravit.report.base import Kind
from tetravit.report.charts import Series, smooth, thin
from tetravit.report.html import Tile, card, chart, duration, folded, pair, points, table
from tetravit.report.run import Run

HERE = Path(__file__).parent


def page(run: Run, kind: Kind) -> str:
    """The whole document."""
    parts = [
        _header(run),
        _tiles([*kind.tiles(run), *_effort(run)]),
        _curves(run, kind),
        _events(run),
        _ranks(run),
        *kind.sections(run),
        _commands(run, kind),
        _recipe(run),
        _environment(run),
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


def _effort(run: Run) -> list[Tile]:
    """Duration of the run."""
    facts = []
    if run.steps:
        last = run.steps[-1]
        facts.append(Tile("Steps", f"{last['step']:,}", f"{last['epoch']:.4g} epochs"))
    rates = sorted(row["images_per_s"] for row in run.timing if row.get("images_per_s"))
    if rates:
        seconds = max(row["seconds"] for row in run.timing if "images_per_s" in row)
        facts.append(Tile("Time", duration(seconds), f"{rates[len(rates) // 2]:,.0f} images/s, median"))
    return facts


def _tiles(tiles: list[Tile]) -> str:
    cells = [
        f'<div class="tile{" good" if tile.good else ""}"><div class="label">{escape(tile.label)}</div>'
        f'<div class="value">{escape(tile.value)}</div><div class="detail">{escape(tile.detail)}</div></div>'
        for tile in tiles
    ]
    return f'<div class="tiles">{"".join(cells)}</div>'


def _curves(run: Run, kind: Kind) -> str:
    loss = points(run.steps, "loss")
    series = [
        Series("training", smooth(loss), 3, thin(loss, 400)),
        Series("validation", points(run.evaluations, "loss"), 1),
        Series("EMA weights", points(run.evaluations, "ema_loss"), 2),
    ]
    charts = [
        chart("Loss", series, log=True),
        *kind.charts(run),
        chart("Learning rate", [Series("learning rate", thin(points(run.steps, "lr"), 300), 1)]),
        chart("Speed", [Series("images/s", thin(points(run.timing, "images_per_s"), 300), 1)]),
    ]
    return pair(*charts)


def _events(run: Run) -> str:
    """Warnings of the task, and rollbacks after non-finite losses."""
    alarms = [[f"{e['step']:,}", str(e["text"])] for e in run.events if {"step", "text"} <= e.keys()]
    rows = [
        [
            f"{event['step']:,}",
            str(event["what"]),
            f"{event['checkpoint']:,}",
            "given up" if event["attempt"] is None else str(event["attempt"]),
        ]
        for event in run.events
        if {"step", "what", "checkpoint", "attempt"} <= event.keys()
    ]
    note = "The run returned to the checkpoint and continued with other random numbers at half the learning rate."
    columns = ["step", "not finite", "back to step", "attempt"]
    cards = [card("Warnings", table(["after step", ""], alarms, numbers=2))] if alarms else []
    cards += [card("Returns to a checkpoint", table(columns, rows, numbers=2), note)] if rows else []
    return "".join(cards)


def _ranks(run: Run) -> str:
    """Time per step of each rank, averaged over the run; empty for a single process."""
    rows = [row["ranks"] for row in run.timing if len(row.get("ranks", ())) > 1]
    if not rows:
        return ""
    rows = [row for row in rows if len(row) == len(rows[-1])]

    def mean(rank: int, name: str) -> float:
        return sum(float(row[rank][name]) for row in rows) / len(rows)

    cells = [
        [
            f"{rank}",
            f"{mean(rank, 'step_s'):.3f}",
            f"{mean(rank, 'data_s'):.3f}",
            f"{rows[-1][rank]['memory_mib']:,}",
        ]
        for rank in range(len(rows[-1]))
    ]
    columns = ["rank", "step, s", "waiting for images, s", "memory, MiB"]
    return card("Ranks", table(columns, cells, numbers=4))


def _commands(run: Run, kind: Kind) -> str:
    folder = shlex.quote(str(run.folder))
    recipe = shlex.quote(str(run.folder / "recipe.toml"))
    lines = [
        (kind.title, f"tetravit {kind.command.format(run=folder)}"),
        ("Repeat this run", f"tetravit train {recipe}"),
    ]
    for length in ("epochs", "steps"):
        if isinstance(run.recipe.get(length), int):
            longer = f"tetravit train {recipe} {length}={run.recipe[length] * 2}"
            lines.insert(1, ("Next to try: twice as long", longer))
    blocks = [
        f'<div><p class="sub">{escape(title)}</p><div class="command"><pre>{escape(command)}</pre>'
        '<button type="button">Copy</button></div></div>'
        for title, command in lines
    ]
    return card("Next steps", f'<div class="stack">{"".join(blocks)}</div>')


def _recipe(run: Run) -> str:
    text = re.sub(
        r"(?m)^(\s*#.*)$", r'<span class="comment">\1</span>', escape(run.recipe_text.strip(), quote=False)
    )
    return folded(
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
    return folded("Environment", f'<table class="plain">{rows}</table>')


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(entry)}" for key, entry in value.items())
    if isinstance(value, list):
        return " ".join(shlex.quote(str(entry)) for entry in value)
    return _when(value) if isinstance(value, str) else str(value)


def _when(text: Any) -> str:
    """An ISO time in readable form; other values unchanged."""
    try:
        moment = datetime.datetime.fromisoformat(str(text))
    except ValueError:
        return str(text or "")
    return moment.strftime("%Y-%m-%d %H:%M") + (" UTC" if moment.tzinfo == datetime.UTC else "")
