"""Two processes on one machine (gloo) are one process with the same global batch."""

import contextlib
import json
import multiprocessing
import os
import signal
import socket

import pytest
import torch
from engine_toy import ToyLoader, ToyValidation, batch, toy_job
from torch import nn

from tetravit import world as world_module
from tetravit.engine.guard import NotFinite
from tetravit.engine.log import Reporters
from tetravit.engine.loop import fit
from tetravit.engine.signals import Interrupted
from tetravit.engine.strategies.parts import norms
from tetravit.engine.strategies.parts.norms import SharedBatchNorm
from tetravit.layers.batch_norm import BatchNorm

STEPS = 12


class Share(ToyValidation):
    def __init__(self, rank):
        self.rank = rank

    def __iter__(self):
        yield batch(list(range(100 + self.rank, 112, 2)))


def job(run_dir, world, *, dropout=0.0, spoil=None, resume=None, **options):
    loader = options.pop("loader", ToyLoader)(rank=world.rank, world_size=world.size, spoil=spoil)
    made = toy_job(
        run_dir, steps=STEPS, loader=loader, dropout=dropout, world=world, resume=resume,
        validation=Share(world.rank), **options,
    )  # fmt: skip
    if not world.is_main:
        made.reporters = Reporters([])
    return made


class Stopped(ToyLoader):
    """A signal reaches rank 1 alone."""

    def batches(self, start):
        for step, micros in enumerate(super().batches(start), start):
            if step == 4 and self.rank == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            yield micros


def scenarios(rank, port, folder):
    os.environ.update(
        RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    torch.set_num_threads(1)
    with world_module.world("cpu") as world:
        straight = job(folder / "straight", world)
        fit(straight)
        if world.is_main:
            torch.save(straight.task.state_dict(), folder / "two.pt")

        spoilt = job(None, world, spoil={3: float("nan")} if rank else None)
        with contextlib.suppress(NotFinite):
            fit(spoilt)
            raise AssertionError("not noticed")
        (folder / f"nan_{rank}").touch()

        dropped = job(folder / "dropped", world, dropout=0.2, log_steps=4)
        fit(dropped)
        cut = job(folder / "cut", world, dropout=0.2, log_steps=4, loader=Stopped)
        with contextlib.suppress(Interrupted):
            fit(cut)
            raise AssertionError("not stopped")
        world.any(False)
        again = job(folder / "cut", world, dropout=0.2, log_steps=4, resume="latest")
        assert again.resume.step == 5
        fit(again)
        for name, value in dropped.task.state_dict().items():
            assert torch.equal(value, again.task.state_dict()[name]), name
        (folder / f"done_{rank}").touch()


@pytest.mark.slow
def test_two_processes_are_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=scenarios, args=(rank, port, tmp_path)) for rank in (0, 1)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(timeout=180)
        process.kill()
    assert [process.exitcode for process in ranks] == [0, 0]

    alone = toy_job(tmp_path / "alone", steps=STEPS, dropout=0.0)
    fit(alone)
    two = torch.load(tmp_path / "two.pt", weights_only=True)
    for name, value in alone.task.state_dict().items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=2e-5, msg=name)
    logs = [
        [json.loads(x) for x in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("alone", "straight")
    ]
    assert [x.keys() for x in logs[0]] == [x.keys() for x in logs[1]]
    for one, other in zip(*logs, strict=True):
        for key, value in one.items():
            assert other[key] == (value if isinstance(value, str) else pytest.approx(value, abs=1e-4)), key
    assert (tmp_path / "dropped/metrics.jsonl").read_bytes() == (tmp_path / "cut/metrics.jsonl").read_bytes()


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, BatchNorm])
def test_a_shared_norm_alone_is_batch_norm(kind, monkeypatch):
    monkeypatch.setattr(norms, "all_reduce", lambda x: x)
    torch.manual_seed(0)
    plain, shared = nn.BatchNorm2d(3), nn.Sequential(kind(3))
    norms.share_norms(shared, torch.device("cpu"))
    assert type(shared[0]) is SharedBatchNorm
    for _ in range(3):
        x = torch.randn(4, 3, 5, 5) * 0.01 + 50.0
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        ya, yb = plain(a), shared(b)
        torch.testing.assert_close(ya, yb, rtol=1e-3, atol=2e-3)
        ya.square().sum().backward()
        yb.square().sum().backward()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(shared[0].state_dict()[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("gpu", "A device is auto, cpu, cuda, cuda:N or mps; got 'gpu'."),
        ("xpu", "A device is auto, cpu, cuda, cuda:N or mps; got 'xpu'."),
        ("meta", "A device is auto, cpu, cuda, cuda:N or mps; got 'meta'."),
        (
            "cuda",
            "There is no device 'cuda': this build of PyTorch has no CUDA; auto and cpu compute on the CPU.",
        ),
        (
            "1",
            "There is no device 'cuda:1': this build of PyTorch has no CUDA; auto and cpu compute on the CPU.",
        ),
        ("mps", "There is no device 'mps': PyTorch finds no GPU of Apple; auto and cpu compute on the CPU."),
    ],
)
def test_a_device_that_is_not_there_is_named(device, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: False)
    with pytest.raises(ValueError) as error:
        world_module.pick_device(device)
    assert str(error.value) == message
