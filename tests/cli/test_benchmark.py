"""benchmark: rows with a share of the machine's own rate."""

import json
from dataclasses import replace

import pytest
import torch

from tetravit.benchmark.against import Contest, contest
from tetravit.benchmark.flops import count, count_inference_macs
from tetravit.benchmark.memory import peak_mib
from tetravit.benchmark.picture import slope
from tetravit.benchmark.speed import Row, measure
from tetravit.benchmark.table import caption, markdown
from tetravit.models import create_model

FAST = ["--size", "32", "--batch", "2", "--rounds", "2"]


@pytest.mark.slow  # it measures for seconds
def test_rows_hold_together(ask):
    answer = ask("benchmark", "xcit_nano_12_p16", "deit_tiny", *FAST, "--json")
    rows = [Row(**json.loads(line)) for line in answer.out.splitlines()]
    assert [row.model for row in rows] == ["xcit_nano_12_p16", "deit_tiny"]
    for row in rows:
        assert row.macs == count(row.model, image_size=32).inference_macs
        assert row.share == pytest.approx(2e-12 * row.macs * row.images_per_s / row.product_tflops, rel=0.02)
        assert 0 < row.share < 1
        assert row.spread >= 0


@pytest.mark.slow
def test_training_counts_three_forward_passes():
    (row,) = measure(["xcit_nano_12_p16"], size=32, batch=2, rounds=1, seconds=0.01, mode="train")
    assert row.share == pytest.approx(6e-12 * row.macs * row.images_per_s / row.product_tflops, rel=0.05)


@pytest.mark.slow
def test_the_table_says_under_which_conditions(ask, tmp_path):
    answer = ask("benchmark", "xcit_nano_12_p16", *FAST, "--into", tmp_path / "rows.jsonl")
    (row,) = (Row(**json.loads(line)) for line in (tmp_path / "rows.jsonl").read_text().splitlines())
    assert f"{row.images_per_s:,.1f}" in answer.out
    assert "images/s" in answer.out
    assert answer.err.startswith("forward, eager, float32, 32 px, batch 2; ")
    assert "TFLOP/s" in answer.err


@pytest.mark.slow
def test_rows_of_different_kinds_share_no_table():
    rows = [measure(["deit_tiny"], size=32, batch=n, rounds=1, seconds=0.01)[0] for n in (1, 2)]
    with pytest.raises(ValueError, match=r"^Rows of different machines or settings share no table\.$"):
        caption(rows)
    assert markdown(rows[:1]).startswith("| model | parameters | GMACs |")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["deit_tny"], "Unknown model 'deit_tny'. Did you mean 'deit_tiny'?"),
        (["deit_tiny", "--dtype", "int8"], "dtype takes one of float32, bfloat16, float16; got 'int8'."),
        (
            ["deit_tiny", "--size", "1k"],
            "--size takes pixels from 32 up, or several with commas between; got '1k'.",
        ),
        (
            ["deit_tiny", "--size", "16"],
            "--size takes pixels from 32 up, or several with commas between; got '16'.",
        ),
        (
            ["deit_tiny", "--batch", "1,0"],
            "--batch takes a number from 1 up, or several with commas between; got '1,0'.",
        ),
        (["deit_tiny", "--into", "nowhere/rows.jsonl"], "There is no folder 'nowhere' for the rows."),
        (["deit_tiny", "--picture", "nowhere/a.png"], "There is no folder 'nowhere' for the picture."),
        (["deit_tiny", "--into", "."], ". is a folder, not a file for the rows."),
        (["deit_tiny", "--picture", "."], ". is a folder, not a file for the picture."),
        (["deit_tiny", "--against", "timm, compil"], "Unknown contender 'compil'. Did you mean 'compile'?"),
        (["deit_tiny", "--against", "tim"], "Unknown contender 'tim'. Did you mean 'timm'?"),
        (
            ["deit_tiny", "--train", "--against", "openvino"],
            "openvino does not train; contenders that do: plain, plain-compiled, timm, compile.",
        ),
        (
            ["deit_tiny", "--compile", "--optimize"],
            "--compile goes without --against, --optimize, --busy, --picture, several sizes and several batches.",
        ),
    ],
    ids=[
        "model",
        "dtype",
        "size",
        "small",
        "batch",
        "into",
        "picture",
        "rows folder",
        "picture folder",
        "blank",
        "contender",
        "idle",
        "compile",
    ],
)
def test_mistakes(ask, arguments, text):
    answer = ask("benchmark", *arguments)
    assert (answer.code, answer.out, answer.err) == (2, "", f"tetravit benchmark: {text}\n")


@pytest.mark.slow
def test_the_peak_is_what_a_call_takes():
    def call() -> None:
        torch.ones(64 * 2**20 // 4).sum()

    peak = peak_mib(call, torch.device("cpu"))
    assert peak != peak or 60 < peak < 80  # NaN where the system does not tell


def test_counting_leaves_the_model_as_it_was():
    model = create_model("xcit_nano_12_p16", depth=1)
    frozen = next(model.parameters()).requires_grad_(False)
    count_inference_macs(model, torch.zeros(1, 3, 32, 32))
    assert not frozen.requires_grad
    assert sum(not p.requires_grad for p in model.parameters()) == 1


@pytest.mark.nightly  # a process for each contender
def test_contenders_take_turns_in_processes_of_their_own(ask, tmp_path):
    picture = tmp_path / "sizes.png"
    answer = ask(
        *("benchmark", "xcit_nano_12_p16", "--against", "timm", "--size", "64,96", "--batch", "1"),
        *("--rounds", "2", "--json", "--picture", picture),
    )
    rows = [Contest(**json.loads(line)) for line in answer.out.splitlines()]
    assert [(row.contender, row.size) for row in rows] == [
        *(("plain", 64), ("timm", 64)),
        *(("plain", 96), ("timm", 96)),
    ]
    for row in rows:
        assert row.failed == ""
        assert 0 < row.share < 1
    assert [row.ratio for row in rows if row.contender == "timm"] == [1.0, 1.0]
    assert picture.stat().st_size > 10_000


@pytest.mark.slow
def test_several_batches_are_measured_and_added_to_a_file(ask, tmp_path):
    kept = tmp_path / "rows.jsonl"
    kept.write_text('{"before": 1}\n')
    answer = ask(
        *("benchmark", "xcit_nano_12_p16", "--batch", "1,2", "--size", "32", "--rounds", "1", "--into", kept),
    )
    assert answer.code == 0
    before, *lines = kept.read_text().splitlines()
    rows = [Contest(**json.loads(line)) for line in lines]
    assert before == '{"before": 1}'
    assert [(row.contender, row.batch, row.failed) for row in rows] == [("plain", 1, ""), ("plain", 2, "")]
    assert answer.out.split()[:4] == ["model", "contender", "px", "batch"]
    assert "batch 1, 2; " in answer.err


@pytest.mark.slow
def test_a_step_counts_as_three_forward_passes():
    (row,) = contest(
        ["xcit_nano_12_p16"], ["plain"], sizes=[32], batch=2, mode="step", rounds=1, seconds=0.01
    )
    assert row.failed == ""
    assert row.share == pytest.approx(6e-12 * row.macs * row.images_per_s / row.product_tflops, rel=0.05)


@pytest.mark.slow
def test_a_contender_that_fails_is_named_and_costs_no_other_its_figures():
    rows = contest(["gcvit_large_512"], ["timm", "plain"], sizes=[32], batch=1, rounds=1, seconds=0.01)
    assert rows[0].failed == "ValueError: timm has no model 'gcvit_large_512'."
    assert rows[0].images_per_s is None
    assert rows[1].images_per_s > 0
    assert rows[1].ratio is None


def test_the_slope_is_that_of_tokens():
    sizes = [224, 448, 896]
    assert slope(sizes, [s**2 for s in sizes]) == pytest.approx(1.0)
    assert slope(sizes, [7 * s**4 for s in sizes]) == pytest.approx(2.0)


def test_busy_cores_are_asked_for_and_said(ask, monkeypatch, tmp_path):
    from tests.benchmark.rows import ROW

    given = []

    def contest(names, contenders, *, busy, on_rows, **settings):
        given.append((names, contenders, busy))
        rows = [
            replace(ROW, contender=name, busy=busy, others=1.1, how="eager, 2 threads") for name in contenders
        ]
        on_rows(rows)
        return rows

    monkeypatch.setattr("tetravit.benchmark.against.contest", contest)
    answer = ask("benchmark", "deit_tiny", "--busy", "1", "--optimize", "--into", tmp_path / "rows.jsonl")
    assert given == [(["deit_tiny"], ["plain", "optimized"], 1)]
    assert "optimized (eager, 2 threads)" in answer.out
    assert answer.err.endswith("; 1 core kept busy meanwhile\n")
    rows = [Contest(**json.loads(line)) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [(row.busy, row.others) for row in rows] == [(1, 1.1)] * 2
