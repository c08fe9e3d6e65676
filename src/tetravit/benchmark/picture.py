"""Charts of measured rows: speed against accuracy, or time and memory against image size."""

import math
from collections.abc import Sequence
from pathlib import Path

from tetravit.benchmark.against import Contest
from tetravit.benchmark.table import MODES
from tetravit.weights import CHECKPOINTS

COLOURS = ("#2563c9", "#d1495b", "#2a9d8f", "#e09f3e", "#7b5ea7", "#5b6472")
DPI = 150


def draw(rows: Sequence[Contest], path: str | Path) -> None:
    """Draw speed against published top-1 (rows of one image size), or time and memory (rows of several).

    Raises:
        ValueError: if no row has a figure, or the extension of the path is not one of a picture format.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [row for row in rows if row.images_per_s]
    if not rows:
        raise ValueError("There is nothing to draw: no contender could be measured.")
    several = len({row.size for row in rows}) > 1
    figure, axes = pyplot.subplots(1, 2 if several else 1, figsize=(12 if several else 8, 5), squeeze=False)
    try:
        if several:
            _against_size(
                axes[0, 0], rows, "seconds per image", lambda row: 1 / (row.images_per_s or math.nan)
            )
            _against_size(axes[0, 1], rows, "peak memory, MiB", lambda row: row.peak_mib or math.nan)
        else:
            _against_accuracy(axes[0, 0], rows)
        first = rows[0]
        batches = ", ".join(str(batch) for batch in dict.fromkeys(row.batch for row in rows))
        threads = f", {first.threads} threads" if first.threads else ""
        figure.suptitle(
            f"{MODES[first.mode]}, {first.dtype}, batch {batches}; {first.device}{threads}", fontsize=9
        )
        figure.tight_layout()
        try:
            figure.savefig(path, dpi=DPI)
        except ValueError as error:
            raise ValueError(f"The picture cannot be written: {str(error).splitlines()[0]}") from None
    finally:
        pyplot.close(figure)


def slope(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The exponent e of values ~ tokens ** e, by least squares over the logarithms; tokens grow as size squared."""
    x, y = [2 * math.log(s) for s in sizes], [math.log(v) for v in values]
    middle_x, middle_y = sum(x) / len(x), sum(y) / len(y)
    top = sum((a - middle_x) * (b - middle_y) for a, b in zip(x, y, strict=True))
    return top / sum((a - middle_x) ** 2 for a in x)


def _against_accuracy(axes, rows) -> None:  # type: ignore[no-untyped-def]
    for i, contender in enumerate(dict.fromkeys(_label(row, rows) for row in rows)):
        mine = [row for row in rows if _label(row, rows) == contender]
        points = [(row, top1) for row in mine if (top1 := _top1(row.model)) is not None]
        axes.scatter(
            [row.images_per_s for row, _ in points],
            [top1 for _, top1 in points],
            color=COLOURS[i % len(COLOURS)],
            label=contender,
            s=36,
        )
        if i == 0:
            for row, top1 in points:
                axes.annotate(
                    row.model, (row.images_per_s, top1), xytext=(5, 4), textcoords="offset points", fontsize=7
                )
    axes.set_xscale("log")
    axes.set_xlabel(f"images/s at {rows[0].size} px")
    axes.set_ylabel("published ImageNet top-1, %")
    axes.grid(alpha=0.25, which="both")
    axes.legend(fontsize=8)


def _against_size(axes, rows, label, value) -> None:  # type: ignore[no-untyped-def]
    for i, key in enumerate(dict.fromkeys((row.model, _label(row, rows)) for row in rows)):
        mine = sorted((r for r in rows if (r.model, _label(r, rows)) == key), key=lambda r: r.size)
        sizes, values = [r.size for r in mine], [value(r) for r in mine]
        usable = [(s, v) for s, v in zip(sizes, values, strict=True) if v > 0]
        name = " ".join(key)
        if len(usable) > 1:
            name += f" (tokens^{slope(*zip(*usable, strict=True)):.2f})"
        axes.plot(sizes, values, marker="o", color=COLOURS[i % len(COLOURS)], label=name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(sorted({row.size for row in rows}), [str(s) for s in sorted({row.size for row in rows})])
    axes.set_xlabel("image side, pixels")
    axes.set_ylabel(label)
    axes.grid(alpha=0.25, which="both")
    axes.legend(fontsize=7)


def _label(row: Contest, rows: Sequence[Contest]) -> str:
    """The contender, with its batch size if there are several."""
    return row.contender if len({r.batch for r in rows}) == 1 else f"{row.contender}, batch {row.batch}"


def _top1(model: str) -> float | None:
    """The published accuracy of the plain ImageNet-1k weights of a model, %."""
    rows = [row for row in CHECKPOINTS.values() if row.model == model and "top1" in row.published]
    plain = [row for row in rows if row.tag == "in1k"] or rows
    return plain[0].published["top1"] if plain else None
