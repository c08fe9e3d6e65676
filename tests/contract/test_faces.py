"""A verb, a group of verbs, a predictor, a kind of report: one new file each, and no other edit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import tetravit

pytestmark = pytest.mark.slow  # whole runs and other processes

VERB = '''
def hello(name: str = "you") -> None:
    """Say hello."""
    print(f"Hello {name}.")

VERBS = {"hello": hello}
'''
GROUP = """
from tetravit.cli.base import Group

def small() -> None:
    raise ValueError("Nothing to make.")

GROUPS = {"make": Group("Make things.", {"small": small})}
"""
PREDICTOR = """
from pathlib import Path
from tetravit.predictors.base import Option, Output, Predictor, Writer, whole

def brightness(model, sources, *, digits=1, batch_size=1, device="cpu"):
    from tetravit.predictors.parts.predictions import Prediction, pixels_of

    class Brightness(Prediction):
        def cells(self):
            return [str(self.facts()["mean"])]

        def facts(self):
            return {"mean": round(float(pixels_of(self.image).float().mean()), digits)}

    return (Brightness(source) for source in sources)

class Sum(Writer):
    def __init__(self, file):
        self.file, self.total = file, 0.0

    def add(self, prediction):
        self.total += prediction.facts()["mean"]

    def close(self):
        self.file.write_text(str(self.total))
        return f"Wrote {self.file}."

PREDICTORS = {
    "measure": Predictor(
        "light meter",
        brightness,
        (Option("digits", "Digits after the point.", "N", whole),),
        (Output(Option("sum", "Write the sum here.", "FILE", Path), lambda model, sources, sum: Sum(sum)),),
    )
}
"""
ASK = """
import sys
from tetravit.cli import main
from tetravit import models, registry
import torch

model = torch.nn.Linear(1, 1)
model.kind = "measure"
models.load = lambda source, accept_license=False: model
main(sys.argv[1:])
"""
REPORT = """
from tetravit.report.base import Kind

REPORTS = {"measure": Kind("Measure your own images", lambda run: [], lambda run: [], lambda run: ["<p>mine</p>"])}
"""


@pytest.fixture
def drop(tmp_path):
    """The package as links to its files, with one more file; gives what runs Python in it."""
    root, source = tmp_path / "src" / "tetravit", Path(tetravit.__file__).parent

    def run(place: str, text: str, *arguments: str) -> subprocess.CompletedProcess:
        for folder, folders, files in os.walk(source):
            folders[:] = [name for name in folders if name != "__pycache__"]
            here = root / Path(folder).relative_to(source)
            here.mkdir(parents=True, exist_ok=True)
            for name in files:
                if not (here / name).exists():
                    (here / name).symlink_to(Path(folder) / name)
        (root / place).write_text(text)
        environment = {**os.environ, "PYTHONPATH": str(root.parent)}
        return subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True, env=environment, cwd=tmp_path
        )

    return run


def test_a_verb(drop):
    assert drop("cli/hello.py", VERB, "-m", "tetravit", "hello", "--name", "Ada").stdout == "Hello Ada.\n"
    assert "\n  hello " in drop("cli/hello.py", VERB, "-m", "tetravit", "--help").stdout


def test_a_group_of_verbs(drop):
    found = drop("cli/make.py", GROUP, "-m", "tetravit", "make", "small")
    assert (found.returncode, found.stderr) == (2, "tetravit make small: Nothing to make.\n")


def test_a_predictor_with_an_option_and_an_output(drop, tmp_path):
    Image.new("RGB", (4, 4), (10, 20, 31)).save(tmp_path / "a.png")
    help_ = drop("predictors/measure.py", PREDICTOR, "-m", "tetravit", "predict", "--help")
    assert "Digits after the point. (light meters)" in " ".join(help_.stdout.split())
    ask = ("-c", ASK, "predict", "any", "a.png")
    found = drop("predictors/measure.py", PREDICTOR, *ask, "--digits", "2", "--sum", "sum.txt", "--json")
    assert json.loads(found.stdout) == {"image": "a.png", "mean": 20.33}, found.stderr
    assert (tmp_path / "sum.txt").read_text() == "20.33"
    found = drop("predictors/measure.py", PREDICTOR, *ask, "--topk", "2")
    assert found.stderr == "tetravit predict: --topk is for classifiers; any is a light meter.\n"


def test_a_kind_of_report(drop):
    code = "from tetravit.report import REPORTS; print(REPORTS['measure'].title)"
    assert drop("report/measure.py", REPORT, "-c", code).stdout == "Measure your own images\n"
