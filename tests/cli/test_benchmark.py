"""benchmark: rows with a share of the machine's own rate."""

import json

import pytest
import torch

from tetravit.benchmark.flops import count, count_macs
from tetravit.benchmark.memory import peak_mib
from tetravit.benchmark.speed import Row, measure
from tetravit.benchmark.table import caption, markdown
from tetravit.models import create_model

FAST = ["--size", "32", "--batch", "2", "--rounds", "2"]


def test_rows_hold_together(ask):
    answer = ask("benchmark", "xcit_nano_12_p16", "deit_tiny", *FAST, "--json")
    rows = [Row(**json.loads(line)) for line in answer.out.splitlines()]
    assert [row.model for row in rows] == ["xcit_nano_12_p16", "deit_tiny"]
    for row in rows:
        assert row.macs == count(row.model, image_size=32).macs
        assert row.share == pytest.approx(2e-12 * row.macs * row.images_per_s / row.product_tflops, rel=0.02)
        assert 0 < row.share < 1
        assert row.spread >= 0


def test_training_counts_three_forward_passes():
    (row,) = measure(["xcit_nano_12_p16"], size=32, batch=2, rounds=1, seconds=0.01, mode="train")
    assert row.share == pytest.approx(6e-12 * row.macs * row.images_per_s / row.product_tflops, rel=0.05)


def test_the_table_says_under_which_conditions(ask):
    answer = ask("benchmark", "xcit_nano_12_p16", *FAST)
    assert "images/s" in answer.out
    assert answer.err.startswith("forward, eager, float32, 32 px, batch 2; ")
    assert "TFLOP/s" in answer.err


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
        (["deit_tiny", "--mode", "training"], "Unknown mode 'training'. Did you mean 'train'?"),
    ],
    ids=["model", "dtype", "mode"],
)
def test_mistakes(ask, arguments, text):
    answer = ask("benchmark", *arguments)
    assert (answer.code, answer.out, answer.err) == (2, "", f"tetravit benchmark: {text}\n")


def test_the_peak_is_what_a_call_takes():
    def call() -> None:
        torch.ones(64 * 2**20 // 4).sum()

    peak = peak_mib(call, torch.device("cpu"))
    assert peak != peak or 60 < peak < 80  # NaN where the system does not tell


def test_counting_leaves_the_model_as_it_was():
    model = create_model("xcit_nano_12_p16", depth=1)
    frozen = next(model.parameters()).requires_grad_(False)
    count_macs(model, torch.zeros(1, 3, 32, 32))
    assert not frozen.requires_grad
    assert sum(not p.requires_grad for p in model.parameters()) == 1
