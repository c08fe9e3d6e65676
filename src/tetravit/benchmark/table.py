"""Measured rows as a Markdown table: what README prints."""

import statistics
from collections.abc import Sequence

from tetravit.benchmark.against import Contest
from tetravit.benchmark.speed import Row

COLUMNS = ("model", "parameters", "GMACs", "images/s", "spread", "peak MiB", "of this machine")


def cells(row: Row) -> list[str]:
    """One row of a table under `COLUMNS`."""
    return [
        row.model,
        f"{row.params / 1e6:.2f} M",
        f"{row.macs / 1e9:.2f}",
        f"{row.images_per_s:,.1f}",
        f"{100 * row.spread:.1f} %",
        f"{row.peak_mib:,.0f}",
        f"{100 * row.share:.0f} %",
    ]


def caption(rows: Sequence[Row]) -> str:
    """What the rows have in common, in one line.

    Raises:
        ValueError: if they were not measured on one machine in one way: such rows share no table.
    """
    kinds = {(r.device, r.threads, r.mode, r.size, r.batch, r.dtype, r.compiled, r.torch) for r in rows}
    if len(kinds) != 1:
        raise ValueError("Rows of different machines or settings share no table.")
    device, threads, mode, size, batch, dtype, compiled, version = kinds.pop()
    processor = f"{device}, {threads} threads" if threads else device
    how = "compiled" if compiled else "eager"
    what = {"predict": "forward", "train": "forward and backward"}[mode]
    rate = f"matrix products {rows[0].product_tflops:.3g} TFLOP/s"
    return f"{what}, {how}, {dtype}, {size} px, batch {batch}; {processor}; torch {version}; {rate}"


def markdown(rows: Sequence[Row]) -> str:
    """A table and its caption."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---|" + "--:|" * (len(COLUMNS) - 1)]
    lines += ["| " + " | ".join(cells(row)) + " |" for row in rows]
    return "\n".join([*lines, "", caption(rows)])


CONTEST_COLUMNS = ("model", "contender", "px", "images/s", "spread", "of timm", "of the floor", "peak MiB")


def contest_cells(row: Contest) -> list[str]:
    """One row of a table under `CONTEST_COLUMNS`."""

    def text(value: float | None, form: str) -> str:
        return "-" if value is None else form.format(value)

    return [
        row.model,
        row.contender,
        str(row.size),
        text(row.images_per_s, "{:,.2f}"),
        text(row.spread, "{:.1%}"),
        text(row.ratio, "{:.2f}"),
        text(row.share, "{:.0%}"),
        text(row.peak_mib, "{:,.0f}"),
    ]


def contest_caption(rows: Sequence[Contest]) -> str:
    """What the rows have in common, in one line."""
    first = rows[0]
    what = {"predict": "forward", "train": "forward and backward"}[first.mode]
    processor = f"{first.device}, {first.threads} threads" if first.threads else first.device
    rate = statistics.median(row.product_tflops for row in rows)
    copied = statistics.median(row.copy_gb_s for row in rows)
    return (
        f"{what}, {first.dtype}, batch {first.batch}; {processor}; torch {first.torch};"
        f" matrix products {rate:.3g} TFLOP/s, copies {copied:.3g} GB/s"
    )


def contest_markdown(rows: Sequence[Contest]) -> str:
    """A table and its caption.

    Raises:
        ValueError: if they were not measured on one machine in one way: such rows share no table.
    """
    kinds = {(r.device, r.threads, r.mode, r.batch, r.dtype, r.torch) for r in rows}
    if len(kinds) != 1:
        raise ValueError("Rows of different machines or settings share no table.")
    lines = ["| " + " | ".join(CONTEST_COLUMNS) + " |", "|---|---|" + "--:|" * (len(CONTEST_COLUMNS) - 2)]
    lines += ["| " + " | ".join(contest_cells(row)) + " |" for row in rows]
    return "\n".join([*lines, "", f"{contest_caption(rows)}."])
