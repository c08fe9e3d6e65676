"""Kept rows become one line per model; ratios never cross runs."""

import json
from dataclasses import asdict, replace

import pytest
from tests.benchmark.rows import ROW

from tetravit.benchmark.summary import read, summary

KIND = {"mode": "predict", "dtype": "float32", "batch": 8, "size": 224}
RUN = [
    ROW,
    replace(ROW, contender="openvino", images_per_s=16.0),
    replace(ROW, contender="compile", images_per_s=12.0),
    replace(ROW, contender="plain", images_per_s=11.0),
    replace(ROW, contender="optimized", images_per_s=20.0, share=0.8, spread=0.03),
]


def second(model, factor):
    """The same contest for another model, ours `factor` times as fast."""
    ours = ("plain", "optimized")
    return [
        replace(row, model=model, images_per_s=row.images_per_s * (factor if row.contender in ours else 1))
        for row in RUN
    ]


def test_a_line_per_model_and_their_geometric_mean():
    assert summary([*RUN, *second("deit_small", 4)], **KIND).splitlines() == [
        "| model | timm | timm, fastest form | ours | ours, optimized | ours : timm | optimized : timm"
        " | optimized : fastest | of peak |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
        "| deit_tiny | 10 | 16 OpenVINO | 11 | 20 | 1.10 | 2.00 | 1.25 | 80% |",
        "| deit_small | 10 | 16 OpenVINO | 44 | 80 | 4.40 | 8.00 | 5.00 | 80% |",
        "| geometric mean |  |  |  |  | 2.20 | 4.00 | 2.50 | 80% |",
        "",
        "Images per second; forward, float32, batch 8, 224 px; a processor, 2 threads; torch 2.15.0, 2026-11-21;"
        " spreads up to 3%.",
    ]


def test_of_several_runs_the_last_counts_and_none_is_mixed_with_another():
    later = [replace(ROW, images_per_s=40.0, product_tflops=0.3)]
    line = summary(
        [*RUN, *later, replace(later[0], contender="plain", images_per_s=80.0)], **KIND
    ).splitlines()[2]
    assert line == "| deit_tiny | 40 | 80 | 2.00 | 40% |"


def test_who_failed_is_a_dash():
    failed = [
        replace(row, images_per_s=None, share=None) if row.contender == "optimized" else row for row in RUN
    ]
    other = second("deit_small", 4)
    lines = summary([*failed, *other], **KIND).splitlines()
    assert lines[2] == "| deit_tiny | 10 | 16 OpenVINO | 11 | - | 1.10 | - | - | - |"
    assert lines[4] == "| geometric mean |  |  |  |  | 2.20 | - | - | - |"


def test_what_was_not_measured_or_elsewhere_is_refused():
    with pytest.raises(ValueError) as error:
        summary(RUN, **(KIND | {"batch": 1}))
    assert str(error.value) == "No row has predict, float32, batch 1, 224 px."
    with pytest.raises(ValueError) as error:
        summary([*RUN, replace(ROW, model="deit_small", device="another")], **KIND)
    assert str(error.value) == "Rows of different machines share no table."


def test_rows_come_from_a_file(tmp_path):
    file = tmp_path / "speed.jsonl"
    file.write_text("".join(json.dumps(asdict(row)) + "\n" for row in RUN))
    assert read(file) == RUN
