"""Line charts as inline SVG: no library, no network, colours from the page's style sheet."""

import html
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

Point = tuple[float, float]
Scale = Callable[[float], float]  # value -> coordinate
WIDTH, HEIGHT = 420, 240
LEFT, RIGHT, TOP, BOTTOM = 62, 12, 12, 40  # margins around the plot
PAD = 0.05  # margin above and below the curves, as a share of their range


@dataclass(frozen=True)
class Series:
    """One curve. tone: colour index in the style sheet (1, 2, ...). cloud: unsmoothed points, drawn faintly."""

    name: str
    points: Sequence[Point]
    tone: int = 1
    cloud: Sequence[Point] = field(default=())


def line_chart(series: Sequence[Series], *, unit: str = "", log: bool = False, over: str = "step") -> str:
    """Curves as one SVG element; `unit` is appended to numbers of the vertical axis, `over` names the other one."""
    every = [p for s in series for p in (*s.points, *s.cloud)]
    xs = [x for x, _ in every]
    low_x, high_x = min(xs), max(xs)
    # The curves set the range; points of the cloud are clamped to it.
    ys = [y for s in series for _, y in s.points]
    low_y, high_y = padded(min(ys), max(ys), log)
    y_ticks = inside(log_ticks(low_y, high_y), low_y, high_y) if log else []
    if len(y_ticks) < 2:
        y_ticks = inside(ticks(low_y, high_y, 5), low_y, high_y)

    def across(x: float) -> float:
        return LEFT + (x - low_x) / ((high_x - low_x) or 1) * (WIDTH - LEFT - RIGHT)

    def up(y: float) -> float:
        y = min(max(y, low_y), high_y)
        a, b, c = (math.log10(v) for v in (low_y, y, high_y)) if log else (low_y, y, high_y)
        return HEIGHT - BOTTOM - (b - a) / ((c - a) or 1) * (HEIGHT - TOP - BOTTOM)

    steps = ticks(low_x, high_x, 4) if high_x > low_x else [low_x]
    parts = [_grid(y_ticks, up, unit), _feet(steps, low_x, high_x, across, over)]
    for s in series:
        if s.cloud:
            parts.append(f'<path class="cloud tone{s.tone}" d="{_path(s.cloud, across, up)}"/>')
        parts.append(f'<path class="curve tone{s.tone}" d="{_path(s.points, across, up)}"/>')
        if len(s.points) == 1:
            x, y = s.points[0]
            parts.append(f'<circle class="dot tone{s.tone}" cx="{across(x):.1f}" cy="{up(y):.1f}" r="3"/>')
    data = [
        {
            "name": s.name,
            "tone": s.tone,
            "points": [[round(across(x), 1), round(up(y), 1), x, number(y) + unit] for x, y in s.points],
        }
        for s in series
    ]
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" data-over="{over}"'
        f" data-series='{html.escape(json.dumps(data), quote=True)}'>{''.join(parts)}</svg>"
    )


def padded(low: float, high: float, log: bool) -> tuple[float, float]:
    """The range of an axis: that of the curves with a margin, within 0 to 100 for percentages."""
    if log:
        room = (high / low) ** PAD if high > low else 1.1
        return low / room, high * room
    room = (high - low) * PAD or abs(high) * 0.1 or 0.1
    return (low if low == 0 else low - room), high + room


def inside(values: Sequence[float], low: float, high: float) -> list[float]:
    """The values within the range of the axis."""
    return [value for value in values if low <= value <= high]


def smooth(points: Sequence[Point], *, keep: int = 200) -> list[Point]:
    """Running mean over about a fortieth of the points, thinned to `keep`; a short curve is unchanged."""
    half = len(points) // 80
    values = [y for _, y in points]
    means = [
        (x, sum(values[max(0, i - half) : i + half + 1]) / len(values[max(0, i - half) : i + half + 1]))
        for i, (x, _) in enumerate(points)
    ]
    return thin(means, keep)


def thin(points: Sequence[Point], keep: int) -> list[Point]:
    """About `keep` evenly spaced points, including the last one."""
    step = max(1, math.ceil(len(points) / keep))
    taken = list(points[::step])
    return taken if not points or taken[-1] == points[-1] else [*taken, points[-1]]


def ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers from below `low` to above `high`."""
    if high <= low:
        low, high = low - (abs(low) or 1) * 0.1, high + (abs(high) or 1) * 0.1
    rough = (high - low) / count
    magnitude = 10 ** math.floor(math.log10(rough))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten around the range; also their doubles and fives where it spans about two decades or less."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    factors = (1, 2, 5) if high / low < 200 else (1,)
    grid = [f * 10.0**e for e in range(first, last + 1) for f in factors]
    below = max((t for t in grid if t <= low), default=grid[0])
    above = min((t for t in grid if t >= high), default=grid[-1])
    return [t for t in grid if below <= t <= above] if above > below else [below, below * 10]


def number(value: float) -> str:
    """A number with 4 significant digits, without trailing zeros."""
    if value and (abs(value) < 1e-3 or abs(value) >= 1e6):
        mantissa, _, exponent = f"{value:.1e}".partition("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def _path(points: Sequence[Point], across: Scale, up: Scale) -> str:
    return "M" + "L".join(f"{across(x):.1f} {up(y):.1f}" for x, y in points)


def _grid(values: Sequence[float], up: Scale, unit: str) -> str:
    lines = []
    for value in values:
        y = up(value)
        lines.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        at = f'x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end"'
        lines.append(f'<text class="tick" {at}>{number(value)}{unit}</text>')
    return "".join(lines)


def _feet(values: Sequence[float], low: float, high: float, across: Scale, over: str) -> str:
    y = HEIGHT - BOTTOM + 18
    marks = [
        f'<text class="tick" x="{across(v):.1f}" y="{y}" text-anchor="middle">{number(v)}</text>'
        for v in values
        if low <= v <= high
    ]
    label = f'<text class="tick" x="{WIDTH - RIGHT}" y="{HEIGHT - 1}" text-anchor="end">{over}</text>'
    return "".join(marks) + label
