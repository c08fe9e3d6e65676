"""cache: what is kept is listed, and removed."""

import json

import pytest

from tetravit.runtimes.parts import kept


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("TETRAVIT_HOME", str(tmp_path))
    monkeypatch.setenv("TETRAVIT_PROGRAMS_GB", "0.5")
    return tmp_path


def test_an_empty_cache(ask, home):
    answer = ask("cache", "list")
    assert (answer.code, answer.out) == (0, "")
    assert answer.err == f"0 programs, 0 of at most 500 MB, in {home}/programs.\n"
    assert ask("cache", "clear").err == "Removed 0 programs, 0 MB.\n"


def test_programs_are_listed_and_removed(ask, home):
    choices = {"float32, batch 1": {"backend": "openvino"}, "float32, batch 8": {"backend": "openvino"}}
    kept.write(
        "a", {"graph": bytes(2 * 10**6)}, {"model": "deit_tiny", "image": "224x224", "choices": choices}
    )
    (row,) = map(json.loads, ask("cache", "list", "--json").out.splitlines())
    assert (row["model"], row["image"], row["runs_with"], row["bytes"], row["key"]) == (
        *("deit_tiny", "224x224", "openvino"),
        *(2 * 10**6, "a"),
    )
    answer = ask("cache", "list")
    assert "deit_tiny" in answer.out
    assert answer.err == f"1 program, 2 of at most 500 MB, in {home}/programs.\n"
    assert ask("cache", "clear").err == "Removed 1 program, 2 MB.\n"
    assert kept.entries() == []


def test_an_entry_of_another_time_is_listed_too(ask, home):
    kept.write("a", {}, {"choices": "none"})
    (row,) = map(json.loads, ask("cache", "list", "--json").out.splitlines())
    assert (row["model"], row["runs_with"]) == ("-", "-")


def test_a_limit_that_is_none(ask, home, monkeypatch):
    monkeypatch.setenv("TETRAVIT_PROGRAMS_GB", "much")
    answer = ask("cache", "list")
    assert (answer.code, answer.err) == (
        2,
        "tetravit cache list: TETRAVIT_PROGRAMS_GB is a number of gigabytes from 0 up; got 'much'.\n",
    )
