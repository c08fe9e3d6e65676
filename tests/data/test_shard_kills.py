"""Training on shards, killed again and again, ends at the bits of a run that nothing disturbed.

TETRAVIT_KILLS: how many kills.
"""

import multiprocessing
import os
import random
import signal
import time

import pytest
import torch

from tetravit.data.layouts import write_shapes
from tetravit.data.shards.pack import pack
from tetravit.recipe import validated
from tetravit.runs import train
from tetravit.weights.fileformat import read

KILLS = int(os.environ.get("TETRAVIT_KILLS", "2"))
APART = 8  # steps
STEPS = APART * (KILLS + 2)


def recipe(root):
    return validated(
        {
            "steps": STEPS,
            "task": {"name": "classify"},
            "model": {"name": "xcit_nano_12_p16", "options": {"depth": 1, "dim": 32}},
            "data": {
                "name": "shards",
                "root": str(root),
                "image_size": 32,
                "batch_size": 8,
                "augment": "crop | flip | erase(0.5)",
                "shuffle": "shards(2)",
                "workers": 1,
            },
            "optim": {"warmup_epochs": 0},
            "run": {"log_steps": 2, "save_steps": 4},
        }
    )


def live(root, folder):
    torch.set_num_threads(1)
    begun = (folder / "recipe.toml").exists()
    if begun:
        train(None, None, resume=folder)
    else:
        train(recipe(root), folder)


def newest(run):
    """The step of the newest checkpoint; 0: none."""
    return max((int(path.name[5:]) for path in (run / "checkpoints").glob("step_*")), default=0)


@pytest.mark.nightly
def test_kills_change_nothing(tmp_path):
    for _ in write_shapes(tmp_path / "drawn", train=48, val=8, size=48):
        pass
    pack(
        tmp_path / "drawn" / "folders",
        tmp_path / "shards",
        shard_size=64_000,
        workers=1,
    )
    context, draw, kills = multiprocessing.get_context("fork"), random.Random(0), 0
    run, straight = tmp_path / "run", tmp_path / "straight"
    while True:
        life = context.Process(target=live, args=(tmp_path / "shards", run))
        life.start()
        if kills == KILLS:
            life.join()
            assert life.exitcode == 0
            break
        while newest(run) < 4 + APART * kills and life.is_alive():
            time.sleep(0.002)
        life.join(draw.uniform(0, 0.05))
        assert life.is_alive()
        os.kill(life.pid, signal.SIGKILL)
        life.join()
        kills += 1
    assert kills == KILLS
    life = context.Process(target=live, args=(tmp_path / "shards", straight))
    life.start()
    life.join()
    one, other = (read(folder / "last.safetensors")[0] for folder in (run, straight))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
