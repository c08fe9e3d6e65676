"""The study of small samples: what it runs, what it prints, what it refuses."""

import json
import math
from pathlib import Path

import pytest

from tetravit.cli import main
from tetravit.models import create_model
from tetravit.studies.sample_efficiency import MODELS, Row, recipe, run


@pytest.fixture(scope="module")
def rows():
    return run(fractions=(0.1,), seeds=(0, 1), epochs=1, device="cpu")


@pytest.mark.slow  # four runs
def test_both_models_see_the_same_images(rows):
    assert [row.model for row in rows] == list(MODELS)
    assert {(row.images, row.steps, row.fraction) for row in rows} == {(rows[0].images, 20, 0.1)}
    assert all(len(row.top1) == 2 and all(0 <= t <= 100 for t in row.top1) for row in rows)


def test_the_models_differ_in_little_but_the_mixing():
    sizes = [
        sum(p.numel() for p in create_model(m, num_classes=10, image_size=32, **o).parameters())
        for m, o in MODELS.items()
    ]
    assert abs(sizes[0] / sizes[1] - 1) < 0.02


def test_a_part_takes_as_many_steps_as_the_whole():
    part, whole = (recipe("deit_tiny", f, epochs=40, seed=3) for f in (0.1, 1.0))
    assert (part.total_epochs(7), whole.total_epochs(7)) == (400, 40)
    assert part.run.seed == 3


def test_mean_and_spread():
    row = Row("deit_tiny", 0.1, 140, 20, 1, (50.0, 60.0))
    assert (row.mean, round(row.spread, 3)) == (55.0, 7.071)
    assert math.isnan(Row("deit_tiny", 0.1, 140, 20, 1, (50.0,)).spread)


def ask(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main(["study", "sample-efficiency", *arguments])
    printed = capsys.readouterr()
    return int(ended.value.code or 0), printed.out, printed.err


@pytest.mark.slow
def test_the_command_prints_a_table_and_writes_rows(rows, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("tetravit.studies.sample_efficiency.run", lambda **options: rows)
    code, out, _ = ask(capsys, "--seeds", "2", "--into", str(tmp_path / "rows.jsonl"))
    assert code == 0
    assert [line.split()[0] for line in out.splitlines() if "_tiny" in line] == list(MODELS)
    written = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["mean"] for row in written] == [row.mean for row in rows]
    facts = {"study", "epochs", "device", "threads", "torch", "date", "command"}
    assert all(facts <= row.keys() and row["command"].startswith("tetravit") for row in written)
    code, out, _ = ask(capsys, "--json")
    assert [json.loads(line)["model"] for line in out.splitlines()] == list(MODELS)


@pytest.mark.parametrize(
    ("fractions", "message"),
    [
        ("a", "--fractions takes numbers with commas between them; got 'a'."),
        ("0.1,2", "A fraction is above 0 and at most 1; got 2."),
    ],
)
def test_fractions_that_are_none(fractions, message, capsys):
    code, _, err = ask(capsys, "--fractions", fractions)
    assert (code, err.splitlines()[-1]) == (2, f"tetravit study sample-efficiency: {message}")


def test_models_and_seeds_that_are_none():
    with pytest.raises(ValueError) as error:
        run(models=["xcit_nano_12_p16"])
    assert str(error.value) == "The study compares convit_tiny, deit_tiny; got 'xcit_nano_12_p16'."
    with pytest.raises(ValueError) as error:
        run(seeds=[])
    assert str(error.value) == "The study needs one seed or more; got none."


def test_the_kept_table_is_what_its_rows_say():
    folder = Path(__file__).parents[2] / "results"
    rows = [json.loads(line) for line in (folder / "sample_efficiency.jsonl").read_text().splitlines()]
    assert {(row["model"], row["fraction"]) for row in rows} == {(m, f) for m in MODELS for f in (0.1, 1.0)}
    assert {len(row["top1"]) for row in rows} == {3}
    lines = [
        f"| {row['model']} | {row['params']:,} | {row['images']} | {row['steps']} | {row['mean']:.1f} |"
        f" {row['spread']:.1f} | {len(row['top1'])} |"
        for row in rows
    ]
    text = (folder / "README.md").read_text()
    assert "\n".join(lines) in text
    assert rows[0]["command"] in text
