"""Every study in small: its rows, its figure, a second call that repeats nothing, verdicts that name differences."""

import json

import pytest
from typer.testing import CliRunner

from tetravit.cli.app import application
from tetravit.data.datasets import DATASETS
from tetravit.studies import STUDIES
from tetravit.studies.base import compared
from tetravit.studies.parts import training
from tetravit.studies.parts.scores import beside, standard_error

# Options of the shortest form, and the number of rows.
QUICK = {
    "convit-gates": ("", 10),
    "convit-nonlocality": ("", 24),
    "gcvit-flops": ("", 1),
    "twins-window": ("", 1),
}
SHORT = {
    "ade20k": ("--steps 2 --images 4", 4),
    "coco": ("--steps 2 --images 4", 4),
    "convit-ablation": ("--epochs 1 --only a,e --fractions 0.1", 2),
    "convit-locality": ("--epochs 1 --only layers-0_alpha-1,layers-2_alpha-0.1", 2),
    "convit-mask-attention": ("--epochs 1 --images 40", 5),
    "convit-mask-positions": ("--epochs 1 --images 40", 4),
    "convit-table1": ("", 1),
    "gcvit-batch": ("", 1),
    "resolution": ("--epochs 1 --images 40", 15),
    "robustness": ("--epochs 1 --images 40", 25),
    "sample-efficiency": ("--epochs 1 --seeds 1 --fractions 0.1", 2),
    "twins-deploy": ("--batches 2", 3),
    "twins-patterns": ("", 1),
    "twins-table1": ("", 1),
    "xcit-ablation": ("--epochs 1 --seeds 1 --only all,no-xca", 2),
    "xcit-dino": ("--epochs 1", 2),
    "xcit-flops": ("", 2),
    "xcit-resolution-cost": ("--rounds 1", 6),
}


def call(*words):
    result = CliRunner().invoke(application(), ["study", *words, "--device", "cpu"])
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        *(pytest.param(name, *row, id=name) for name, row in QUICK.items()),
        *(pytest.param(name, *row, id=name, marks=pytest.mark.slow) for name, row in SHORT.items()),
    ],
)
def test_in_small(name, options, count, tmp_path):
    words = [name, "--small", *options.split(), "--into", str(tmp_path / "rows.jsonl"), "--json"]
    if STUDIES[name].draw is not None:
        words += ["--draw", str(tmp_path / "figure")]
    code, out, err = call(*words)
    assert code == 0, err
    assert "Not the paper's figure: the same question, in small." in err.splitlines()
    rows = [json.loads(line) for line in out.splitlines()]
    assert len(rows) == count
    if STUDIES[name].draw is not None:
        assert (tmp_path / "figure.svg").read_text().startswith("<?xml")
    if all("key" in row for row in rows):
        code, out, err = call(*words)
        assert [json.loads(line) for line in out.splitlines()] == rows
        said = err[err.index("Takes ") :].splitlines()[1:]  # after the plan, whose source may say "training"
        steps = [line for line in said if "training" in line or ", seed " in line]
        assert not steps


def test_each_study_is_here():
    assert sorted([*QUICK, *SHORT]) == sorted(STUDIES)


def test_rows_in_small_are_told_apart_by_two_standard_errors():
    def row(got, **more):
        return {"got": got, "images": 359, **more, "verdict": "no published figure"}

    one, other = row(90.0), row(80.0)
    assert standard_error(one) == pytest.approx(1.5833, abs=1e-4)
    assert standard_error(row(90.0, deviation=4.0, top1=[1, 2, 3, 4])) == pytest.approx(2.5509, abs=1e-4)
    assert beside(one, other, "DeiT")["verdict"] == "10 points above DeiT"
    assert beside(other, one, "DeiT")["verdict"] == "10 points below DeiT"
    near = beside(row(85.0), other, "DeiT")["verdict"]
    assert near == "no significant difference from DeiT: +5 points, two standard errors are 5.7"
    assert beside(one, one, "DeiT") == beside(one, None, "DeiT") == one
    lost = {**one, **compared(float("nan"), None, 0.3)}
    assert beside(lost, one, "DeiT")["verdict"] == "not finite"


def test_the_number_of_held_out_digits():
    assert len(DATASETS["digits"](None, "val")) == training.VAL_IMAGES
