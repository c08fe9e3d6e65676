"""Tables have the columns that their rows need, and no more."""

from dataclasses import replace

import pytest
from tests.benchmark import rows

from tetravit.benchmark.table import contest_caption, contest_cells, contest_columns, contest_markdown

ROW = replace(rows.ROW, mode="step", size=64, batch=1, images_per_s=1234.5, share=0.5)


def test_the_batch_is_a_column_where_there_are_several():
    one, two = [ROW], [ROW, replace(ROW, batch=8)]
    assert contest_columns(one) == [
        *("model", "contender", "px", "images/s", "spread", "of timm", "of peak", "call MiB", "process MiB")
    ]
    assert contest_columns(two)[2:4] == ["px", "batch"]
    assert [contest_cells(row, two)[3] for row in two] == ["1", "8"]
    assert contest_cells(ROW, one) == ["deit_tiny", "timm", "64", "1,234.50", "1.2%", "1.00", "50%", "-", "-"]
    assert contest_caption(two) == (
        "forward, backward and fused AdamW, float32, batch 1, 8; a processor, 2 threads; torch 2.15.0;"
        " matrix products 0.2 TFLOP/s, copies 9 GB/s"
    )


def test_energy_is_a_column_where_one_row_has_it():
    rows = [ROW, replace(ROW, joules_per_image=0.25)]
    assert contest_columns(rows)[-1] == "J/image"
    assert [contest_cells(row, rows)[-1] for row in rows] == ["-", "0.25"]


def test_markdown_is_a_table_of_one_machine():
    first, rule, row, empty, caption = contest_markdown([ROW]).splitlines()
    assert first.startswith("| model | contender | px |")
    assert rule == "|---|---|" + "--:|" * 7
    assert row.startswith("| deit_tiny | timm | 64 |")
    assert (empty, caption) == ("", f"{contest_caption([ROW])}.")
    with pytest.raises(ValueError, match=r"^Rows of different machines or settings share no table\.$"):
        contest_markdown([ROW, replace(ROW, device="another")])
