"""A run with everything on, cut and continued: mixing, repeated augmentation, averages, a teacher, accumulation."""

import json
import os
import signal

import pytest
import torch
from task_toys import data_section, described
from torch import nn

from tetravit.backbones.deit import DeiT
from tetravit.data.augment import parse
from tetravit.data.datasets import DATASETS
from tetravit.data.loader import TrainLoader
from tetravit.engine import optim
from tetravit.engine.checkpoint import Checkpoints, read
from tetravit.engine.config import RunConfig
from tetravit.engine.ema import Ema
from tetravit.engine.log import JsonLines, Reporters
from tetravit.engine.loop import Job, fit
from tetravit.engine.signals import Interrupted
from tetravit.models.classifier import Classifier
from tetravit.models.teacher import Teacher
from tetravit.structures import Preprocess
from tetravit.tasks.distill import Distill, DistillConfig
from tetravit.tasks.parts.classification import Classification

pytestmark = pytest.mark.slow  # whole runs and other processes

STEPS, K = 40, 10


class Net(nn.Module):
    num_classes = K

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.drop, self.head = nn.Dropout(0.1), nn.Linear(4, K)

    def forward(self, images):
        return self.head(self.drop(self.norm(self.conv(images)).relu().mean((2, 3))))


def token_net():
    """A student with a distillation token and stochastic depth."""
    torch.manual_seed(0)
    return Classifier(DeiT(dim=8, depth=2, num_heads=2, image_size=32, drop_path=0.2, distilled=True), K)


# Who learns what from the teacher, at which side in pixels.
STUDENTS = {
    "logits": (lambda: Net(0), {"kind": "soft", "tau": 2.0}, 8),
    "token": (token_net, {"kind": "hard"}, 32),
}


class Cut:
    """A loader that sends this process a signal while the batch of one step is fetched."""

    def __init__(self, loader, at):
        self.loader, self.at, self.steps_per_epoch = loader, at, loader.steps_per_epoch

    def batches(self, start):
        for step, micros in enumerate(self.loader.batches(start), start):
            if step == self.at:
                os.kill(os.getpid(), signal.SIGTERM)
            yield micros


def job(run_dir, student, cut=-1):
    build, config, side = STUDENTS[student]
    mix, images = "mixup(0.8) | cutmix(1.0)", Preprocess(size=side)
    task = Distill(build(), DistillConfig(label_smoothing=0.1, **config), described(K))
    Classification.prepare(task, data_section(mix))  # the teacher is made here
    task.teach(Teacher(Net(1), K, images), images)
    loader = TrainLoader(
        DATASETS["digits"](None, "train", fraction=0.06),
        parse(f"{'pad_crop(8, 1)' if side == 8 else f'crop({side})'} | flip | erase(0.25)"),
        batch_size=8,
        accumulate=2,
        repeats=3,
        seed=4,
        mix=mix,
    )
    settings = optim.OptimConfig(lr=0.01, lr_batch=0, faithful=True, warmup_epochs=1)
    run_dir.mkdir(exist_ok=True)
    checkpoints = Checkpoints(run_dir, run_id="all", keep=2)
    checkpoints.prepare()
    return Job(
        task=task,
        loader=Cut(loader, cut),
        optimizer=optim.build(task, settings),
        rate=settings.rate(epochs=4, steps_per_epoch=loader.steps_per_epoch, batch_size=8),
        total_steps=STEPS,
        config=RunConfig(device="cpu", accumulate=2, log_steps=3, save_epochs=0, save_minutes=0, keep=2),
        ema=Ema(task.model, 0.99),
        checkpoints=checkpoints,
        resume=checkpoints.latest(),
        reporters=Reporters([JsonLines(run_dir)]),
    )


def outcome(run_dir):
    """Every tensor of the last checkpoint, the state that time does not touch, and the log."""
    found = read(run_dir / "checkpoints" / f"step_{STEPS:06d}")
    parts = ("model", "ema", "optimizer")
    tensors = {f"{part}/{k}": v for part in parts for k, v in found.tensors(part).items()}
    state = json.loads(json.dumps(found.state))
    del state["progress"]["seconds"], state["logs"]
    return tensors, state, (run_dir / "metrics.jsonl").read_bytes()


@pytest.fixture(scope="module", params=STUDENTS)
def straight(request, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("straight")
    fit(job(run_dir, request.param))
    return request.param, outcome(run_dir)


@pytest.mark.parametrize(
    "cuts",
    [range(4, STEPS - 1, 17), pytest.param(range(STEPS - 1), marks=pytest.mark.nightly)],
    ids=["some", "every"],
)
def test_a_cut_resumes_to_the_same_bits(straight, cuts, tmp_path):
    student, (wanted, *beside) = straight
    for cut in cuts:
        run_dir = tmp_path / str(cut)
        with pytest.raises(Interrupted, match=f"after step {cut + 1} of {STEPS}"):
            fit(job(run_dir, student, cut))
        again = job(run_dir, student)
        assert again.resume is not None
        assert again.resume.step == cut + 1
        fit(again)
        tensors, state, log = outcome(run_dir)
        assert tensors.keys() == wanted.keys()
        assert all(torch.equal(value, wanted[name]) for name, value in tensors.items())
        assert [state, log] == beside
