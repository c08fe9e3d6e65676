"""Measured rows as Markdown tables."""

import statistics
from collections.abc import Sequence

from tetravit.benchmark.against import Contest
from tetravit.benchmark.speed import Row

ENERGY = "J/image"  # a column only if some row has a value
MODES = {
    "predict": "forward",
    "train": "forward and backward",
    "step": "forward, backward and fused AdamW",
}


def columns(rows: Sequence[Row]) -> list[str]:
    """Column titles; all columns but the first hold numbers."""
    titles = ["model", "parameters", "GMACs", "images/s", "spread", "peak MiB", "of this machine"]
    return titles + [ENERGY] * _energy(rows)


def cells(row: Row, rows: Sequence[Row]) -> list[str]:
    """The cells of a row, in the order of `columns`."""
    return [
        row.model,
        f"{row.params / 1e6:.2f} M",
        f"{row.macs / 1e9:.2f}",
        f"{row.images_per_s:,.1f}",
        f"{100 * row.spread:.1f} %",
        f"{row.peak_mib:,.0f}",
        f"{100 * row.share:.0f} %",
        *[_text(row.joules_per_image, "{:.3g}")] * _energy(rows),
    ]


def caption(rows: Sequence[Row]) -> str:
    """The shared settings of the rows, in one line.

    Raises:
        ValueError: if they were not measured on one machine in one way: such rows share no table.
    """
    kinds = {(r.device, r.threads, r.mode, r.size, r.batch, r.dtype, r.compiled, r.torch) for r in rows}
    if len(kinds) != 1:
        raise ValueError("Rows of different machines or settings share no table.")
    device, threads, mode, size, batch, dtype, compiled, version = kinds.pop()
    processor = f"{device}, {threads} threads" if threads else device
    how = "compiled" if compiled else "eager"
    what = MODES[mode]
    rate = f"matrix products {rows[0].product_tflops:.3g} TFLOP/s"
    return f"{what}, {how}, {dtype}, {size} px, batch {batch}; {processor}; torch {version}; {rate}"


def markdown(rows: Sequence[Row]) -> str:
    """A table and its caption."""
    table = _markdown(columns(rows), [cells(row, rows) for row in rows], texts=1)
    return "\n".join([*table, "", caption(rows)])


CHOSEN = ("optimized", "torch")  # contenders that choose their backend
UNDISTURBED = 0.2  # cores that other processes may use on a quiet machine
TEXTS = 2  # columns of a contest that hold no numbers


def contest_columns(rows: Sequence[Contest]) -> list[str]:
    """Column titles; all columns but the first `TEXTS` hold numbers."""
    sizes = ["px", *["batch"] * _several(rows)]
    figures = ["images/s", "spread", "of timm", "of peak", "call MiB", "process MiB"]
    return ["model", "contender", *sizes, *figures, *[ENERGY] * _energy(rows)]


def contest_cells(row: Contest, rows: Sequence[Contest]) -> list[str]:
    """The cells of a row, in the order of `contest_columns`."""
    return [
        row.model,
        f"{row.contender} ({row.how})" if row.how and row.contender in CHOSEN else row.contender,
        str(row.size),
        *[str(row.batch)] * _several(rows),
        _text(row.images_per_s, "{:,.2f}"),
        _text(row.spread, "{:.1%}"),
        _text(row.ratio, "{:.2f}"),
        _text(row.share, "{:.0%}"),
        _text(row.peak_mib, "{:,.0f}"),
        _text(row.process_mib, "{:,.0f}"),
        *[_text(row.joules_per_image, "{:.3g}")] * _energy(rows),
    ]


def contest_caption(rows: Sequence[Contest]) -> str:
    """The shared settings of the rows, in one line."""
    first = rows[0]
    batches = ", ".join(str(batch) for batch in dict.fromkeys(row.batch for row in rows))
    processor = f"{first.device}, {first.threads} threads" if first.threads else first.device
    rate = statistics.median(row.product_tflops for row in rows)
    copied = statistics.median(row.copy_gb_s for row in rows)
    return (
        f"{MODES[first.mode]}, {first.dtype}, batch {batches}; {processor}; torch {first.torch};"
        f" matrix products {rate:.3g} TFLOP/s, copies {copied:.3g} GB/s{beside_words(rows)}"
    )


def beside_words(rows: Sequence[Contest]) -> str:
    """Other work on the machine during the benchmark, in words."""
    busy = max(row.busy for row in rows)
    others = max((row.others or 0.0) - row.busy for row in rows)
    on_purpose = f"; {busy} core{'s' if busy > 1 else ''} kept busy meanwhile" if busy else ""
    return on_purpose + (f"; other work used up to {others:.1f} cores" if others > UNDISTURBED else "")


def contest_markdown(rows: Sequence[Contest]) -> str:
    """A table and its caption.

    Raises:
        ValueError: if they were not measured on one machine in one way: such rows share no table.
    """
    kinds = {(r.device, r.threads, r.mode, r.dtype, r.torch, r.busy) for r in rows}
    if len(kinds) != 1:
        raise ValueError("Rows of different machines or settings share no table.")
    table = _markdown(contest_columns(rows), [contest_cells(row, rows) for row in rows], texts=TEXTS)
    return "\n".join([*table, "", f"{contest_caption(rows)}."])


def _markdown(titles: Sequence[str], rows: Sequence[Sequence[str]], *, texts: int) -> list[str]:
    """Lines of a table whose first `texts` columns hold no numbers."""
    rule = "|" + "---|" * texts + "--:|" * (len(titles) - texts)
    return [f"| {' | '.join(titles)} |", rule, *(f"| {' | '.join(row)} |" for row in rows)]


def _several(rows: Sequence[Contest]) -> bool:
    return len({row.batch for row in rows}) > 1


def _energy(rows: Sequence[Row] | Sequence[Contest]) -> bool:
    return any(row.joules_per_image is not None for row in rows)


def _text(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
