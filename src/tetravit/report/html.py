"""HTML elements of the page; all user text is escaped."""

import base64
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from tetravit.report.charts import Point, Series, line_chart, number

SMALL = 64  # pixels; smaller images are enlarged with nearest neighbour
PICTURE_SIDE = 224  # pixels; larger images are downsized to keep the file small


class Tile(NamedTuple):
    """A key figure at the top of the page. good: clearly above chance, drawn in green."""

    label: str
    value: str
    detail: str
    good: bool = False


def card(heading: str, body: str, note: str = "") -> str:
    note = f'<p class="note">{escape(note)}</p>' if note else ""
    return f'<section class="card"><h2>{escape(heading)}</h2>{note}{body}</section>'


def folded(heading: str, body: str, note: str = "") -> str:
    """A collapsed card."""
    note = f'<p class="note">{escape(note)}</p>' if note else ""
    return f'<details class="card"><summary>{escape(heading)}</summary>{note}{body}</details>'


def pair(*cards: str) -> str:
    cards = tuple(card for card in cards if card)
    return f'<div class="pair">{"".join(cards)}</div>' if cards else ""


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], numbers: int) -> str:
    """A plain table; columns from `numbers` on align right."""

    def cells(tag: str, row: Sequence[str]) -> str:
        kind: Callable[[int], str] = lambda j: ' class="num"' if j >= numbers else ""  # noqa: E731
        return "".join(f"<{tag}{kind(j)}>{escape(cell)}</{tag}>" for j, cell in enumerate(row))

    lines = [cells("th", columns), *(cells("td", row) for row in rows)]
    return f'<table class="plain">{"".join(f"<tr>{line}</tr>" for line in lines)}</table>'


def chart(
    heading: str, series: Sequence[Series], *, unit: str = "", log: bool = False, over: str = "step"
) -> str:
    """A card with a chart and its legend; empty if no series has points."""
    series = [s for s in series if s.points]
    if not series:
        return ""
    log = log and all(y > 0 for s in series for _, y in (*s.points, *s.cloud))
    legend = "".join(
        f'<span><i class="key tone{s.tone}"></i>{escape(s.name)} <b>{number(s.points[-1][1])}{unit}</b></span>'
        for s in series
    )
    return card(
        heading, f'<div class="legend">{legend}</div>{line_chart(series, unit=unit, log=log, over=over)}'
    )


def points(rows: Iterable[Mapping[str, Any]], name: str, times: float = 1) -> list[Point]:
    return [
        (row["step"], row[name] * times)
        for row in rows
        if isinstance(row.get(name), int | float) and math.isfinite(row[name])
    ]


def above_chance(score: float | None, classes: int) -> bool:
    """Whether an accuracy is at least twice the chance level for a number of classes."""
    return score is not None and score >= min(0.9, 2 / max(2, classes))


def percent(share: float | None) -> str:
    """A share as text; "-" for None and NaN."""
    if share is None or math.isnan(share):
        return "-"
    return f"{100 * share:.2f} %" if share < 1 else "100 %"


def duration(seconds: float) -> str:
    """A duration: 48 s, 2 min 5 s, 3 h 20 min."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    minutes, seconds = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s" if seconds else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def data_uri(image: Tensor) -> str:
    """Pixels uint8 (C, H, W) -> a data URI: PNG for small images, else JPEG.

    For other than three channels, the first is shown in gray.
    """
    image = image if len(image) == 3 else image[:1].expand(3, -1, -1)
    return picture_uri(Image.fromarray(image.permute(1, 2, 0).contiguous().to(torch.uint8).numpy()))


def picture_uri(picture: Image.Image) -> str:
    """A picture as a data URI; see `data_uri`."""
    picture = picture.copy()
    picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    buffer, kind = io.BytesIO(), "png" if max(picture.size) < SMALL else "jpeg"
    picture.save(buffer, kind, **({"quality": 82} if kind == "jpeg" else {}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
