"""Mistakes around data, starts and schedulers: one clear line and exit code 2 each, before anything is started."""

import pytest

from tetravit.engine import launch as launching
from tetravit.engine.signals import LAUNCHED, mistake_code

CASES = {
    "data pack file --to out": "tetravit data pack: 'file' is a file, not a folder.",
    "data pack set --to file": "tetravit data pack: --to takes a folder; 'file' is a file.",
    "data pack nowhere --to out": "tetravit data pack: There is no folder 'nowhere'.",
    "data pack set --to set/out": (
        "tetravit data pack: Shards are written outside of the data; 'set/out' lies in 'set'."
    ),
    "data pack set --to out --shard-size big": (
        "tetravit data pack: A size of shards is 64KB or more, such as 256MB or 1GiB; got 'big'."
    ),
    "data pack set --to out --option x": "tetravit data pack: An option is KEY=VALUE; got 'x'.",
    "data index file": "tetravit data index: 'file' is a file, not a folder.",
    "data index set": "tetravit data index: There are no .tar files in 'set'.",
    "data check file": "tetravit data check: 'file' is a file, not a folder.",
    "data check set --to file": "tetravit data check: --to takes a folder; 'file' is a file.",
    "data bench digits --workers=-1": (
        "tetravit data bench: --workers takes numbers from 0 up with commas between them; got '-1'."
    ),
    "data bench digits --workers two": (
        "tetravit data bench: --workers takes numbers from 0 up with commas between them; got 'two'."
    ),
    "data bench xcit/imagenet": (
        "tetravit data bench: The recipe lacks data.root: tetravit data bench xcit/imagenet data.root=DIR."
    ),
    "train digits --continue": (
        "tetravit train: --continue goes with a recipe and its folder: tetravit train RECIPE --into RUN --continue."
    ),
    "train digits --slurm nodes=0 --dry-run": "tetravit train: --slurm takes a number of nodes; got '0'.",
    "train digits --slurm gpus --dry-run": (
        "tetravit train: --slurm reads name=value,name=value: nodes=2,gpus=8,partition=a100; got 'gpus'."
    ),
    "launch --nproc-per-node 0 train digits": "tetravit launch: --nproc-per-node is 1 or more; got 0.",
    "launch --nproc_per_node=-2 train digits": "tetravit launch: --nproc_per_node is 1 or more; got -2.",
    "launch digits": (
        "tetravit launch: launch takes options of torchrun and then train: tetravit launch --nproc-per-node 2 train"
        " digits."
    ),
    "launch --nproc-per-node 2 train nosuch --into R": (
        "tetravit launch: Unknown recipe 'nosuch'. `tetravit list recipes` shows them."
    ),
    "launch --nproc-per-node 2 train --into R digits data.batchsize=3": (
        "tetravit launch: Unknown recipe key 'data.batchsize'. Did you mean 'data.batch_size'?"
    ),
}  # fmt: skip


@pytest.mark.parametrize("words", CASES)
def test_one_line(words, ask, tmp_path, monkeypatch):
    def started(*arguments):
        raise AssertionError("a process was started")

    monkeypatch.setattr(launching, "launch", started)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "set").mkdir()
    (tmp_path / "file").write_text("x")
    answer = ask(*words.split())
    assert (answer.code, answer.err) == (2, f"{CASES[words]}\n")


def test_a_mistake_that_a_rank_meets_keeps_its_code(tmp_path, monkeypatch):
    assert mistake_code(2) == 2
    monkeypatch.setenv(LAUNCHED, str(tmp_path))
    assert mistake_code(2) == 2
    assert launching._text(tmp_path / "mistake") == "2"
    assert launching._text(tmp_path / "none") == ""
