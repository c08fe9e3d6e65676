"""results/studies.md is what its rows say."""

import importlib.util
import json
from pathlib import Path

from tetravit.studies import STUDIES

ROOT = Path(__file__).parents[2]


def script():
    spec = importlib.util.spec_from_file_location("studies_script", ROOT / "benchmarks" / "studies.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_made_from_the_rows():
    made = script()
    rows = made.read(ROOT / "results" / "studies.jsonl")
    assert rows.keys() <= STUDIES.keys()
    assert made.page(rows) == (ROOT / "results" / "studies.md").read_text(encoding="utf-8")


def test_the_rows_are_of_the_small_form():
    lines = (ROOT / "results" / "studies.jsonl").read_text(encoding="utf-8").splitlines()
    for row in map(json.loads, lines):
        assert row["command"] == f"tetravit study {row['study']} --small --into results/studies.jsonl"
        assert {"device", "threads", "torch", "date"} <= row.keys()
