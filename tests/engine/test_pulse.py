"""A rank that is stopped is named, and the others end."""

import multiprocessing
import os
import platform
import signal
import socket
import time

import pytest
import torch
from engine_toy import ToyLoader, toy_job

from tetravit import world as world_module
from tetravit.engine.loop import fit

LIMIT_S = 3.0


class Stopping(ToyLoader):
    """One rank is stopped in the middle, as by a debugger or a machine that swaps."""

    stopped = 0

    def batches(self, start):
        for step, micros in enumerate(super().batches(start), start):
            if step == 5 and self.rank == self.stopped:
                os.kill(os.getpid(), signal.SIGSTOP)
            yield micros


def train(rank, port, stopped, errors):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    torch.set_num_threads(1)
    with world_module.world("cpu") as world:
        loader = Stopping(rank=rank, world_size=2)
        loader.stopped = stopped
        fit(toy_job(None, steps=12, loader=loader, world=world, validation=None, hang_seconds=LIMIT_S))


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [0, 1])
def test_the_others_end_and_say_who_hangs(tmp_path, stopped):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["engine_toy"])
    errors = tmp_path / "errors"
    ranks = [context.Process(target=train, args=(rank, port, stopped, errors)) for rank in range(2)]
    for process in ranks:
        process.start()
    other, silent = ranks[1 - stopped], ranks[stopped]
    start = time.monotonic()
    other.join(timeout=100)
    silent.kill()
    assert other.exitcode == 75, errors.read_text()
    assert time.monotonic() - start < 60 + LIMIT_S
    line = f"Rank {stopped} ({platform.node()}) sent no heartbeat for 3 s in step 6."
    assert line in errors.read_text().splitlines()
