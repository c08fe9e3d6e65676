"""kill -9, again and again: no run is lost, and what comes out is what an undisturbed run gives."""

import contextlib
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from engine_toy import ToyLoader, toy_job

from tetravit.engine import checkpoint
from tetravit.engine.checkpoint import Checkpoints
from tetravit.engine.loop import fit

STEPS, EVERY, KILLS, INSIDE = 500, 5, 30, 12


class Paced(ToyLoader):
    told = None

    def batches(self, start):
        self.told.send(("started", 0))
        for micros in super().batches(start):
            time.sleep(0.004)
            yield micros


def train(run_dir, told):
    """One life of the run. `told` hears when a save begins and which step it has finished."""
    torch.set_num_threads(1)  # as in the lives of the test's own process: sums in the same order
    real_write, real_publish = checkpoint.write_file, Checkpoints._publish

    def slow_write(path, data):
        told.send(("saving", 0))
        time.sleep(0.02)
        return real_write(path, data)

    def publish(self, temporary, final):
        real_publish(self, temporary, final)
        told.send(("saved", int(final.name[5:])))

    checkpoint.write_file, Checkpoints._publish = slow_write, publish
    loader = Paced()
    loader.told = told
    fit(toy_job(run_dir, steps=STEPS, loader=loader, save_steps=EVERY))


def outcome(run_dir):
    found = checkpoint.read(run_dir / "checkpoints" / f"step_{STEPS:06d}")
    files = {p.name: p.read_bytes() for p in found.path.glob("*.safetensors")}
    return files, (run_dir / "metrics.jsonl").read_bytes()


@pytest.mark.slow
def test_thirty_kills_lose_no_run(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))  # so that the preload below finds its module
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["engine_toy", "torch._dynamo"])  # the slow imports, once
    draw = random.Random(0)
    run_dir, inside, last = tmp_path / "killed", 0, 0
    for kill in range(KILLS):
        ours, theirs = context.Pipe()
        life = context.Process(target=train, args=(run_dir, theirs))
        life.start()
        theirs.close()
        heard = []
        if kill % 2:  # inside the second save of this life: in any of its files, or in the rename
            while ("saved", last + EVERY) not in heard:
                heard.append(ours.recv())
            for _ in range(draw.randint(1, 5)):
                heard.append(ours.recv())
            time.sleep(draw.uniform(0, 0.025))
        else:
            while not heard:
                heard.append(ours.recv())
            time.sleep(draw.uniform(0, 0.5))
        os.kill(life.pid, signal.SIGKILL)
        life.join()
        assert life.exitcode == -signal.SIGKILL
        with contextlib.suppress(EOFError):
            while True:
                heard.append(ours.recv())
        saved = [step for what, step in heard if what == "saved"]
        inside += heard[-1][0] == "saving"
        last = max([last, *saved])
        kept = Checkpoints(run_dir, run_id="toy", say=pytest.fail)
        found = kept.latest()
        if last:
            # The name may be there before the word of it.
            assert found.step in (last, last + EVERY)
            last = found.step
        assert len(list(kept.folder.glob(".writing*"))) <= 1
    assert inside >= INSIDE
    assert 0 < last < STEPS

    torch.set_num_threads(1)
    fit(toy_job(run_dir, steps=STEPS, save_steps=EVERY))
    fit(toy_job(tmp_path / "straight", steps=STEPS, save_steps=STEPS))
    assert outcome(run_dir) == outcome(tmp_path / "straight")
