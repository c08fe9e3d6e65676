"""A run that was cut continues to the same bits."""

import json
import os
import signal

import pytest
import torch
from engine_toy import ToyLoader, toy_job

from tetravit.engine.checkpoint import read
from tetravit.engine.loop import fit
from tetravit.engine.signals import Interrupted

STEPS = 40


class Cut(ToyLoader):
    """Sends this process a signal while the batch of step `at` is fetched."""

    at = -1

    def batches(self, start):
        for step, micros in enumerate(super().batches(start), start):
            if step == self.at:
                os.kill(os.getpid(), signal.SIGTERM)
            yield micros


def outcome(run_dir):
    """Every tensor of the last checkpoint, the state that time does not touch, and the log."""
    found = read(run_dir / "checkpoints" / f"step_{STEPS:06d}")
    tensors = {
        f"{part}/{k}": v for part in ("model", "ema", "optimizer") for k, v in found.tensors(part).items()
    }
    state = json.loads(json.dumps(found.state))
    del state["progress"]["seconds"], state["logs"]
    return tensors, state, (run_dir / "metrics.jsonl").read_bytes()


def assert_same(a, b):
    assert a[0].keys() == b[0].keys()
    for name in a[0]:
        assert torch.equal(a[0][name], b[0][name]), name
    assert a[1] == b[1]
    assert a[2] == b[2]


SLOW = [{}, {"accumulate": 4, "precision": "fp16"}]


@pytest.fixture(
    scope="module",
    params=[*(pytest.param(kind, marks=pytest.mark.slow) for kind in SLOW), {"optimizer": "sgd"}],
    ids=str,
)
def straight(request, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("straight")
    fit(toy_job(run_dir, **request.param))
    return request.param, outcome(run_dir)


@pytest.mark.slow
def test_every_cut_resumes_to_the_same_bits(straight, tmp_path):
    options, wanted = straight
    for cut in range(0, STEPS - 1, 1 if not options else 6):
        run_dir = tmp_path / str(cut)
        loader = Cut(accumulate=options.get("accumulate", 1))
        loader.at = cut
        with pytest.raises(Interrupted, match=f"after step {cut + 1} of {STEPS}"):
            fit(toy_job(run_dir, loader=loader, **options))
        job = toy_job(run_dir, **options)
        assert job.resume is not None
        assert job.resume.step == cut + 1
        fit(job)
        assert_same(outcome(run_dir), wanted)
