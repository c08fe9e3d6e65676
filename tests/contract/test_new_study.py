"""A study is one new file: its command, options, table and rows follow from it."""

import json

import pytest
from tests.dropped import package_with, python

pytestmark = pytest.mark.slow  # whole runs and other processes

MINE = """
from typing import Annotated

import typer

from tetravit.studies.base import Study


def measure(*, width: Annotated[int, typer.Option(help="Channels.")] = 8, device="auto", on_run=print):
    on_run(f"width {width}")
    return [{"model": "mine", "width": width}]


STUDIES = {
    "mine": Study("Mine?", measure, {"model": lambda row: row["model"], "width": lambda row: row["width"]})
}
"""


def test_a_dropped_study_is_a_command(tmp_path):
    package = package_with(tmp_path, {"studies/mine.py": MINE})
    calls = """
from tetravit.cli import main
import sys
try:
    main(["study", "mine", "--width", "3", "--device", "cpu", *sys.argv[1:]])
except SystemExit as ended:
    assert not ended.code, ended.code
"""
    (row,) = python(package, "-c", calls, "--json").splitlines()
    row = json.loads(row)
    assert (row["study"], row["model"], row["width"]) == ("mine", "mine", 3)
    assert "mine" in python(package, "-m", "tetravit", "study", "--help")
