"""Studies whose rows are training runs: their recipes, finished runs that are read, small runs, refusals."""

import json
import math

import pytest
import torch
from typer.testing import CliRunner

from tetravit.cli.app import application
from tetravit.engine.guard import NotFinite
from tetravit.models import create_model
from tetravit.recipe import find, load
from tetravit.runs.build import model_options
from tetravit.studies import convit_ablation, convit_locality, sample_efficiency, xcit_ablation
from tetravit.studies.parts import training

TABLES = {
    "convit-ablation": convit_ablation.table("", "1.0,0.1"),
    "convit-locality": convit_locality.table("", small=False),
    "xcit-ablation": xcit_ablation.table("", ",".join(xcit_ablation.WHOLE), small=False),
    "sample-efficiency": sample_efficiency.table("", "", small=False),
}


def call(*words):
    result = CliRunner().invoke(application(), ["study", *words, "--device", "cpu"])
    return result.exit_code, result.stdout, result.stderr


def rows(*words):
    code, out, err = call(*words, "--json")
    assert code == 0, err
    return [json.loads(line) for line in out.splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLES)
def test_each_row_is_a_recipe_and_a_model(name):
    table = TABLES[name]
    assert (
        len({row.name for row in table})
        == len(table)
        == {"convit-ablation": 14, "xcit-ablation": 12}.get(name, 10)
    )
    small = convit_locality.table("", small=True) if name == "convit-locality" else table
    for row in small:
        with torch.device("meta"):
            create_model(row.model, image_size=32, **row.options)
    for row in table:
        recipe = load(find(row.recipe), [*row.overrides, "data.root=x"])
        with torch.device("meta"):
            create_model(recipe.model.name, **model_options(recipe))
        assert training.digits_recipe(row.model, row.options, epochs=1, fraction=row.fraction)


def test_the_rows_of_table_3():
    table = {row.name: row for row in TABLES["convit-ablation"]}
    assert [table[f"{name}_1"].expected for name in "abcdefg"] == [82.2, 82.0, 81.4, 81.6, 79.1, 78.6, 73.7]
    assert [table[f"{name}_0.1"].expected for name in "abcdefg"] == [59.7, 57.4, 56.9, 54.6, 47.8, 54.3, 44.8]
    settings = [o for o in table["g_1"].overrides if o.startswith("model.options")]
    assert settings == [f"model.options.{o}" for o in ("gate=frozen", "local_init=false", "freeze_gpsa=true")]
    assert "model.name=deit_small" in table["e_1"].overrides


def test_no_figure_of_xcits_table_is_given_but_the_published_ones():
    assert [(r.name, r.expected) for r in TABLES["xcit-ablation"] if r.expected is not None] == [
        ("xcit_small_12_p16_all", 82.0), ("xcit_small_12_p8_all", 83.4),
    ]  # fmt: skip


@pytest.fixture
def finished(tmp_path):
    """A folder with the finished run of row a on all images."""
    run = tmp_path / "a_1"
    run.mkdir()
    (run / "run.json").write_text('{"status": "finished"}')
    records = [{"event": "step", "step": 1, "epoch": 0.5, "loss": 1.0}]
    records += [
        {"event": "evaluation", "step": i, "epoch": i / 2, "top1": t, "top5": 0.9}
        for i, t in ((2, 0.823), (4, 0.82))
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return tmp_path


@pytest.mark.slow
def test_a_finished_run_is_read_and_compared(finished, tmp_path):
    words = (
        "convit-ablation",
        "--only",
        "a",
        "--fractions",
        "1.0",
        "--runs",
        str(finished),
        "--data-root",
        "x",
    )
    (row,) = rows(*words, "--into", str(tmp_path / "rows.jsonl"))
    assert (row["got"], row["expected"], row["verdict"]) == (82.3, 82.2, "within 0.3")
    assert row["history"] == [[1.0, 82.3], [2.0, 82.0]]
    assert row["steps"] == 4
    (again,) = rows(*words, "--into", str(tmp_path / "rows.jsonl"))
    assert again == row
    (other,) = rows(*words, "--epochs", "3")
    assert other["verdict"] == "protocol differs: 3 epochs"


def test_a_run_is_started_where_there_is_none(monkeypatch, tmp_path):
    given = []

    def train(recipe, folder, continuing):
        given.append((recipe, folder, continuing))
        raise NotFinite(7, "loss", ["a"])

    monkeypatch.setattr("tetravit.runs.train", train)
    (row,) = rows("xcit-ablation", "--only", "no-l2", "--models", "xcit_small_12_p16", "--runs", str(tmp_path),
                  "--data-root", "x", "--set", "run.precision=bf16")  # fmt: skip
    assert (row["got"], row["verdict"], row["note"]) == (None, "not finite", "loss not finite at step 7")
    ((recipe, folder, continuing),) = given
    assert (folder, continuing) == (tmp_path / "xcit_small_12_p16_no-l2", True)
    assert recipe.model.options == {"l2_norm": False}
    assert (recipe.run.precision, recipe.run.device, recipe.epochs) == ("bf16", "cpu", 400)


def test_commands_are_printed_for_elsewhere(tmp_path):
    code, out, _ = call("sample-efficiency", "--fractions", "0.3", "--data-root", "/images", "--commands")
    assert code == 0
    assert out.splitlines() == [
        f"tetravit train convit/sample_efficiency --into runs/sample-efficiency/{model}_0.3 --continue"
        f" model.name={model} data.options.fraction=0.3 data.root=/images run.device=cpu"
        for model in ("deit_small", "convit_small")
    ]


def test_the_first_classes_are_linked(tmp_path):
    for part in ("train", "val"):
        for i in range(5):
            (tmp_path / "set" / part / f"n{i}").mkdir(parents=True)
    folder = convit_locality.first_classes(tmp_path / "set", tmp_path / "few", 3)
    assert sorted(p.name for p in (folder / "val").iterdir()) == ["n0", "n1", "n2"]
    assert convit_locality.first_classes(tmp_path / "set", tmp_path / "few", 3) == folder
    with pytest.raises(ValueError) as error:
        convit_locality.first_classes(tmp_path / "set", tmp_path / "few")
    assert str(error.value) == (
        f"The study needs 100 class folders in {tmp_path / 'set' / 'train'}; there are 5."
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["convit-ablation"], "The study needs ImageNet: --data-root DIR, or --small for the digits."),
        (["convit-ablation", "--only", "h"], "--only takes rows of a, b, c, d, e, f, g; got 'h'."),
        (
            ["convit-ablation", "--fractions", "a"],
            "--fractions takes numbers with commas between them; got 'a'.",
        ),
        (["sample-efficiency", "--fractions", "0.1,2"], "A fraction is above 0 and at most 1; got 2."),
        (
            ["xcit-ablation", "--models", "deit_tiny"],
            "--models takes xcit_small_12_p16, xcit_small_12_p8; got 'deit_tiny'.",
        ),
        (
            ["xcit-ablation", "--small", "--data-root", "x"],
            "--small trains on the digits: without --data-root, --set and --commands.",
        ),
    ],
)
def test_what_is_refused(words, message):
    code, _, err = call(*words)
    assert (code, err.splitlines()[-1]) == (2, f"tetravit study {words[0]}: {message}")


def test_a_run_without_an_evaluation(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"event": "step", "step": 1}\n')
    with pytest.raises(ValueError) as error:
        training.read_run(tmp_path)
    assert str(error.value) == f"{tmp_path} has no evaluation: its recipe sets run.evaluate_epochs=0?"


def test_several_seeds_and_what_is_not_finite():
    runs = [training.Trained(top1, top1, math.nan, 5) for top1 in (50.0, 60.0)]
    assert training._scores(runs)["deviation"] == 7.07
    runs.append(training.Trained(math.nan, math.nan, math.nan, 3, "loss not finite at step 3"))
    scores = training._scores(runs)
    assert (scores["top1"], scores["note"]) == ([50.0, 60.0, None], "loss not finite at step 3")
