"""Figures that several studies share: horizontal bars of what was measured, with lines at what is published."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tetravit.studies.base import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def bars(
    rows: Sequence[Row],
    label: Callable[[Row], str],
    unit: str,
    *,
    panel: Callable[[Row], str] = lambda row: "",
    digits: int = 1,
) -> "Figure":
    """`got` of each row as a bar, `expected` as a line across it; one panel for each value of `panel`."""
    from matplotlib.figure import Figure

    panels = list(dict.fromkeys(map(panel, rows)))
    most = max(sum(panel(row) == name for row in rows) for name in panels)
    longest = max(len(label(row)) for row in rows)
    size = ((3.6 + 0.065 * longest) * len(panels), 1.3 + 0.34 * most)
    figure = Figure(figsize=size, layout="constrained")
    keys: dict[str, Any] = {}
    for axes, name in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        own = [row for row in rows if panel(row) == name]
        _panel(axes, own, digits)
        keys |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        axes.set_yticks(range(len(own)), [label(row) for row in own], fontsize="small")
        axes.set(xlabel=unit, title=name)
    if "published" in keys:
        figure.legend(keys.values(), keys.keys(), loc="outside lower center", ncols=2, fontsize="small")
    return figure


def _panel(axes: "Axes", rows: Sequence[Row], digits: int) -> None:
    """Draw the bars of one panel."""
    values = [row["got"] if row["got"] is not None else 0.0 for row in rows]
    axes.barh(range(len(rows)), values, height=0.62, color="tab:blue", label="measured")
    known = [row["expected"] for row in rows if row["expected"] is not None]
    limit = max([*values, *known, 0.0]) * 1.18 or 1.0
    for place, (row, value) in enumerate(zip(rows, values, strict=True)):
        text = f"{value:.{digits}f}" if row["got"] is not None else "not finite"
        end = max(value, row["expected"] or 0.0)
        axes.text(end + 0.012 * limit, place, text, va="center", fontsize="small")
        if row["expected"] is not None:
            ends = [place - 0.42, place + 0.42]
            axes.plot([row["expected"]] * 2, ends, color="black", linewidth=2, label="published")
    axes.set_xlim(0, limit)
    axes.invert_yaxis()
