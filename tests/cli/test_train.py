"""train: a run from the command line, its mistakes, and how it is interrupted."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tetravit.tasks import TASKS

SMALL = [
    "epochs=1",
    "optim.warmup_epochs=0",
    "model.name=xcit_nano_12_p16",
    "model.options.depth=1",
    "data.options.fraction=0.1",
]

LONGER = ["epochs=20", "run.log_steps=1", "run.evaluate_epochs=0", "run.save_epochs=0"]


@pytest.mark.slow
def test_a_run_leaves_its_folder_and_says_what_next(ask, tmp_path):
    run = tmp_path / "run"
    answer = ask("train", "digits", *SMALL, "--into", run)
    assert answer.code == 0
    assert answer.out == ""
    best, report, following = answer.err.splitlines()[-3:]
    assert best.startswith("Best val top-1 ")
    assert report == f"Report: {run}/report.html"
    assert following == f"Next: tetravit predict {run}/best.safetensors IMAGE"
    left = {p.name for p in run.iterdir()}
    assert {
        "recipe.toml",
        "run.json",
        "metrics.jsonl",
        "best.safetensors",
        "last.safetensors",
        "report.html",
    } <= left
    assert f"Continue it with --resume {run}" in ask("train", "digits", "--into", run).err


def test_a_dry_run_prints_the_recipe_and_writes_nothing(ask, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = ask("train", "digits", *SMALL, "--dry-run")
    assert answer.code == 0
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "again.toml").write_text(answer.out)
    assert ask("train", "again.toml", "--dry-run").out == answer.out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "train takes a recipe, or --resume RUN. `tetravit list recipes` shows them."),
        (["digit"], "Unknown recipe 'digit'. Did you mean 'digits'?"),
        (["none.toml"], "There is no recipe file 'none.toml'."),
        (["digits", "optim.lrr=1"], "Unknown recipe key 'optim.lrr'. Did you mean 'optim.lr'?"),
        (["digits", "epochs=2.5"], "epochs takes int; got 2.5 (float)."),
        (["digits", "epochs"], "An override reads section.key=value; got 'epochs'."),
        (
            ["digits", "task.name=clasify"],
            f"task.name takes one of {', '.join(sorted(TASKS))}; got 'clasify'.",
        ),
        (["digits", "model.name=xcit_nano"], "Unknown model 'xcit_nano'. Did you mean 'xcit_nano_12_p8'?"),
        (["digits", "data.name=digit"], "Unknown data set 'digit'. Did you mean 'digits'?"),
        (
            ["xcit/imagenet"],
            "The recipe lacks data.root: data.root=FOLDER says where the data set 'imagenet' lies.",
        ),
        (["--resume", "nowhere"], "nowhere is not the folder of a run: it has no recipe.toml and run.json."),
        (
            ["digits", "task.name=detect"],
            "The task 'detect' cannot train on the data set 'digits'; sets it trains on: coco, shapes_det,"
            " shards_detect, voc_det, yolo.",
        ),
        (["digits", "data.name=csv"], "Unknown data set 'csv'. `tetravit list datasets` shows them."),
        (
            ["digits", "--epochs", "3"],
            "No such option: --epochs. Keys of a recipe have no dashes: epochs=VALUE. See"
            " `tetravit train --help`.",
        ),
        (["digits", "--strict"], "--strict goes with --resume RUN, or with --continue."),
        (
            ["digits", "--continue"],
            "--continue goes with a recipe and its folder: tetravit train RECIPE --into RUN --continue.",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes(ask, tmp_path, monkeypatch, arguments, text):
    monkeypatch.chdir(tmp_path)
    answer = ask("train", *arguments)
    assert (answer.code, answer.out, answer.err) == (2, "", f"tetravit train: {text}\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_an_interrupted_run_says_how_to_go_on(tmp_path):
    """SIGTERM: exit code 75, one last line; the command in it finishes the run."""
    run = tmp_path / "run"
    command = [sys.executable, "-m", "tetravit", "train"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(
        [*command, "digits", *SMALL, *LONGER, "--into", str(run)],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    deadline = time.monotonic() + 120
    while not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").stat().st_size:
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    child.send_signal(signal.SIGTERM)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 75
    last = err.splitlines()[-1]
    assert last.startswith("Stopped by SIGTERM after step ")
    assert last.endswith(f"continue with: tetravit train --resume {run}")
    done = subprocess.run([*command, "--resume", str(run)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert Path(run, "report.html").exists()
