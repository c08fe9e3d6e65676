"""Cases that refuse their input run here in this process; `run_cases.py` runs all of them as commands."""

import shlex

import pytest
from tests.cases.run_cases import CASES, Result, check

from tetravit.cli import main

QUICK = [name for name, case in CASES.items() if case.code and len(case.commands) == 1]
SLOW = ("coco validation without objects", "coco flat polygon", "yolo keypoints", "more epochs")


def outcome(name, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)

    def run(command, at):
        capsys.readouterr()
        monkeypatch.chdir(at)
        with pytest.raises(SystemExit) as ended:
            main(shlex.split(command))
        printed = capsys.readouterr()
        return Result(int(ended.value.code or 0), printed.out + printed.err)

    return check(name, CASES[name], folder, run)


@pytest.mark.parametrize("name", QUICK)
def test_a_refusal(name, tmp_path, monkeypatch, capsys):
    assert outcome(name, tmp_path, monkeypatch, capsys) == ""


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_a_run(name, tmp_path):
    assert check(name, CASES[name], tmp_path) == ""
