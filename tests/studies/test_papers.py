"""Studies of the papers' tables: anchors, verdicts, what is said before they start, resuming, figures."""

import inspect
import json

import pytest
from typer.testing import CliRunner

from tetravit.cli.app import application
from tetravit.cli.study import plan, spoken
from tetravit.studies import STUDIES
from tetravit.studies.base import compared


def call(*words):
    result = CliRunner().invoke(application(), ["study", *words, "--device", "cpu"])
    return result.exit_code, result.stdout, result.stderr


def rows(*words):
    code, out, err = call(*words, "--json")
    assert code == 0, err
    return [json.loads(line) for line in out.splitlines()]


def test_a_figure_is_compared_with_the_published_one():
    assert compared(81.4, 81.3, 0.1) == {
        "got": 81.4, "expected": 81.3, "difference": 0.1, "verdict": "within 0.1",
    }  # fmt: skip
    assert compared(81.0, 81.3, 0.1)["verdict"] == "outside 0.1"
    assert compared(81.0, None, 0.1)["verdict"] == "no published figure"
    assert compared(float("nan"), 1.0, 0.1) == {
        "got": None, "expected": 1.0, "difference": None, "verdict": "not finite",
    }  # fmt: skip
    assert compared(81.0, 81.3, 0.1, differs="20 epochs")["verdict"] == "protocol differs: 20 epochs"


def test_every_study_names_its_source_and_has_a_small_form():
    for name, study in STUDIES.items():
        assert study.question.endswith("?")
        assert study.source, name
        assert study.expected, name
        assert study.small, name
        assert "small" in inspect.signature(study.measure).parameters
        texts = (study.source, study.expected, study.needs, study.small)
        assert not any(text.endswith(".") or "memory)" in text for text in texts)


def test_the_plan_names_the_missing_weights(monkeypatch, tmp_path):
    monkeypatch.setenv("TETRAVIT_HOME", str(tmp_path))
    asked = [
        "What share do positions have in ConViT's heads, layer by layer?",
        "Source: ConViT (arXiv:2103.10697v2), Figures 6, 14 and 17; which runs the published files are is not known.",
    ]
    small = ["Not the paper's figure: the same question, in small."]
    small += ["Takes a second: an untrained convit_tiny, whose gates are all 0.731."]
    _, _, err = call("convit-gates", "--small")
    assert err.splitlines() == asked + small
    assert plan(STUDIES["convit-gates"], {}, "cpu") == [
        *asked,
        "Expected: as printed above the maps of Figures 7, 16 and 17; compared as sets, as heads may be in another"
        " order; which printed row is which layer is sure for the first and the last alone.",
        "Needs: published weights; no images; seconds.",
        "Not on this machine yet: convit_tiny.in1k, convit_small.in1k, convit_base.in1k; `tetravit weights fetch`"
        " brings them.",
    ]


def test_the_plan_has_the_time_of_this_machine_and_of_a_card(monkeypatch):
    monkeypatch.setattr("tetravit.benchmark.speed.product_flops", lambda device: 1e12)
    options = {"only": "a", "fractions": "1.0", "epochs": None}
    assert plan(STUDIES["convit-ablation"], options, "cpu")[4] == (
        "Cost: 2.3e+19 operations; at 40% of the peak 669 days of this machine, 16 hours of one H100 in bfloat16."
        " That is optimistic: two to three times as long is usual."
    )


def test_lengths_of_time():
    lengths = (0.2, 5, 300, 9_000, 3e6, 1e11)
    assert [spoken(seconds) for seconds in lengths] == [
        "a second", "5 seconds", "5 minutes", "2 hours", "35 days", "3,169 years",
    ]  # fmt: skip


def test_untrained_gates_are_the_initial_value():
    table = rows("convit-gates", "--small")
    assert [row["layer"] for row in table] == list(range(1, 11))
    assert all(row["gates"] == [0.7311] * 4 for row in table)


def test_printed_gates_are_compared_as_sets():
    from tetravit.studies.convit_gates import _verdict

    assert _verdict([0.73, 0.09, 0.001, 0.51], (0.00, 0.09, 0.51, 0.73)) == "within 0.01"
    assert _verdict([0.73, 0.2, 0.0, 0.51], (0.00, 0.09, 0.51, 0.73)) == "outside 0.01: 0.11 apart"


@pytest.mark.slow
def test_non_locality_at_the_start_is_that_of_the_formula():
    table = rows("convit-nonlocality", "--small")
    first = {row["weights"]: row for row in table if row["layer"] == 1}
    assert first["convit_tiny"]["got"] == pytest.approx(2.6789, abs=0.01)
    assert first["deit_tiny"]["got"] == pytest.approx(7.28076, abs=0.01)
    assert {row["verdict"] for row in first.values()} == {"within 0.05"}
    code, _, err = call("convit-nonlocality", "--weights", "gcvit_xxtiny")
    assert code == 2
    assert err.splitlines()[-1] == (
        "tetravit study convit-nonlocality: Non-locality is for ConViT and DeiT, whose grid stays the same;"
        " got gcvit_xxtiny."
    )


def test_counts_of_gcvit_name_the_rows_that_do_not_follow():
    table = {row["model"]: row for row in rows("gcvit-flops")}
    outside = {name for name, row in table.items() if row["verdict"].startswith("outside")}
    assert outside == {"gcvit_xtiny", "gcvit_tiny2", "gcvit_small2", "gcvit_large_384", "gcvit_large_512"}
    assert table["gcvit_xxtiny"]["params"] == 11_995_428


@pytest.mark.slow
def test_counts_of_xcit_and_patterns_of_twins():
    (small, large) = rows("xcit-flops", "--small")
    assert (small["side"], large["side"]) == (224, 384)
    assert large["macs"] > 10 * small["macs"]
    (pattern,) = rows("twins-patterns", "--small")
    assert (pattern["pattern"], pattern["verdict"]) == ("L, LG, LG, G", "within 0.15")


@pytest.mark.slow
def test_the_cheapest_window_is_that_of_section_3_2(tmp_path):
    table = rows("twins-window")
    assert {row["side"]: row["got"] for row in table} == {56: 7, 28: 5, 14: 4, 224: 15}
    code, _, err = call("twins-window", "--draw", str(tmp_path / "figure"))
    assert code == 0, err
    assert (tmp_path / "figure.png").stat().st_size > 5_000
    assert (tmp_path / "figure.svg").read_text().startswith("<?xml")


@pytest.mark.parametrize("option", ["--into", "--draw"])
def test_a_folder_that_does_not_exist_is_named_before_anything_is_measured(option, tmp_path):
    code, out, err = call("twins-window", option, str(tmp_path / "no" / "file"))
    assert (code, out) == (2, "")
    assert err == (
        f"tetravit study twins-window: {option} {tmp_path / 'no' / 'file'}: there is no folder {tmp_path / 'no'}.\n"
    )


def test_rows_of_other_studies_stay_in_the_file(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"study": "other", "figure": 1}\n{"study": "oth')  # the last line was cut
    for _ in range(2):
        rows("twins-window", "--small", "--into", str(file))
        kept = [json.loads(line)["study"] for line in file.read_text().splitlines()]
        assert kept == ["other", "twins-window"]


def test_gcvits_logits_do_not_depend_on_the_batch():
    (row,) = rows("gcvit-batch", "--small")
    assert row["verdict"] == "independent"


def test_a_study_without_a_figure_says_which_have_one(tmp_path):
    code, _, err = call("gcvit-batch", "--small", "--draw", str(tmp_path / "x"))
    assert code == 2
    assert err.startswith("tetravit study gcvit-batch: gcvit-batch has no figure; studies with one: ade20k, ")


@pytest.mark.parametrize("name", ["resolution", "convit-mask-attention", "convit-mask-positions"])
def test_a_validation_set_is_asked_for(name):
    code, _, err = call(name)
    assert code == 2
    assert err.splitlines()[-1].endswith(
        "The study needs a validation set: --data-root DIR (ImageNet), or --small for the digits."
    )


@pytest.mark.slow
def test_masks_in_small_and_resuming(tmp_path):
    file = tmp_path / "rows.jsonl"
    first = rows("convit-mask-attention", "--small", "--epochs", "1", "--images", "50", "--into", str(file))
    assert [(row["masked"], row["layers"]) for row in first] == [
        ("nothing", 0), ("content", 1), ("position", 1), ("content", 3), ("position", 3),
    ]  # fmt: skip
    assert {row["images"] for row in first} == {50}
    lines = file.read_text().splitlines()
    file.write_text("\n".join(lines[:4]) + "\n")
    code, _, err = call(
        "convit-mask-attention", "--small", "--epochs", "1", "--images", "50", "--into", str(file)
    )
    assert code == 0
    assert err.count("masked in the first") == 1  # the row that was missing
    assert len(file.read_text().splitlines()) == 5
    again = rows("convit-mask-attention", "--small", "--epochs", "1", "--images", "50", "--into", str(file))
    assert [row["top1"] for row in again] == [row["top1"] for row in first]
    code, _, err = call(
        "convit-mask-attention", "--small", "--epochs", "1", "--images", "40", "--into", str(file)
    )
    assert (code, err.count("masked in the first")) == (0, 4)  # other images: nothing is reused
