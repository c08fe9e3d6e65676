"""Sharded training on two processes equals training on one, resumes to the same bits, and says what it cannot do."""

import copy
import json
import multiprocessing
import os
import socket

import pytest
import torch

from tetravit.engine.log import Reporter
from tetravit.engine.signals import Interrupted
from tetravit.engine.strategies.fsdp import Fsdp
from tetravit.recipe import validated
from tetravit.runs import train
from tetravit.weights.fileformat import read

RECIPE = {
    "steps": 6,
    "task": {"name": "classify"},
    "model": {"name": "xcit_nano_12_p16", "drop_path": 0.2, "options": {"depth": 2}},
    "data": {
        "name": "digits", "image_size": 32, "batch_size": 16, "augment": "crop", "workers": 0,
        "options": {"fraction": 0.1},
    },
    "optim": {"warmup_steps": 2, "lr": 2e-4, "clip": 1.0, "ema": 0},
    "run": {"log_steps": 1, "save_steps": 3, "device": "cpu", "strategy": "fsdp", "accumulate": 2},
}  # fmt: skip


class Stop(Reporter):
    def tick(self, done):
        if done == 3:
            os.kill(os.getpid(), 15)


def process(rank, port, folder, phase):
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    torch.set_num_threads(1)
    if phase == "straight":
        train(validated(RECIPE), folder / "straight", reporters=[])
    elif phase == "cut":
        with pytest.raises(Interrupted):
            train(validated(RECIPE), folder / "cut", reporters=[Stop()])
    else:
        train(None, None, resume=folder / "cut", reporters=[])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fsdp")
    context = multiprocessing.get_context("spawn")
    for phase in ("straight", "cut", "resumed"):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        ranks = [context.Process(target=process, args=(rank, port, folder, phase)) for rank in (0, 1)]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join(timeout=180)
            rank.kill()
        assert [rank.exitcode for rank in ranks] == [0, 0], phase
    return folder


def losses(folder):
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if record["event"] == "step"]


@pytest.mark.slow
def test_shards_give_the_losses_of_one_process(folder, tmp_path):
    alone = copy.deepcopy(RECIPE)
    alone["run"]["strategy"] = "single"
    train(validated(alone), tmp_path / "alone", reporters=[])
    assert losses(folder / "straight") == pytest.approx(losses(tmp_path / "alone"), abs=1e-5)
    one, two = (read(place / "last.safetensors")[0] for place in (tmp_path / "alone", folder / "straight"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=2e-5, msg=name)


@pytest.mark.slow
def test_a_cut_run_ends_at_the_same_bits(folder):
    straight, cut = (read(folder / name / "last.safetensors")[0] for name in ("straight", "cut"))
    assert all(torch.equal(cut[name], value) for name, value in straight.items())
    assert losses(folder / "cut") == losses(folder / "straight")


def test_one_process_and_averages_are_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError) as error:
        train(validated(RECIPE), tmp_path / "run", reporters=[])
    assert str(error.value) == "run.strategy=fsdp divides a model over several processes; this run has one."
    monkeypatch.setattr(Fsdp, "check", lambda self, task, world: None)
    table = copy.deepcopy(RECIPE)
    table["optim"]["ema"] = 0.99
    with pytest.raises(ValueError) as error:
        train(validated(table), tmp_path / "run", reporters=[])
    assert str(error.value) == "run.strategy=fsdp keeps no averaged weights; set optim.ema=0."
    assert not (tmp_path / "run").exists()
