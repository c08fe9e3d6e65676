"""Measured rows as a Markdown table: what README prints."""

from collections.abc import Sequence

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
