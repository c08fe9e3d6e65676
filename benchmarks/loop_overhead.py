"""What the loop adds to the bare forward, backward and step of a model, in percent.

    python benchmarks/loop_overhead.py [MODEL] [--size PX] [--batch N] [--steps N] [--device cpu|cuda]

Both sides train the same model on the same batch, in turns, and the medians of their times per step are compared.
On a CPU the time is that of the processor, so that a busy machine does not blur it.
The loop has its log, averaged weights, the guard against NaN and the step-wise schedule on; clipping is on in both.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn

from tetravit.data.datasets.base import DatasetInfo
from tetravit.engine import optim
from tetravit.engine.config import RunConfig
from tetravit.engine.ema import Ema
from tetravit.engine.log import JsonLines, Reporters
from tetravit.engine.loop import Job, fit
from tetravit.engine.precision import autocast, chosen
from tetravit.engine.schedule import warmup_cosine
from tetravit.models import create_model
from tetravit.structures import Batch
from tetravit.tasks.base import Progress
from tetravit.tasks.classify import Classify, ClassifyConfig
from tetravit.world import World


class OneBatch:
    """The same images in every step; notes when each step was asked for."""

    steps_per_epoch = 1_000_000

    def __init__(self, batch: Batch, clock: Callable[[], float]) -> None:
        self.batch, self.clock, self.times = batch, clock, list[float]()

    def batches(self, start: int) -> Iterator[list[Batch]]:
        while True:
            self.times.append(self.clock())
            yield [self.batch]


def bare(
    task: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch, steps: int, device: torch.device
) -> list[float]:
    """Times of a loop without anything: what a step costs by itself."""
    clock, precision = clock_of(device), chosen("auto", device)
    times = [clock()]
    parameters = list(task.parameters())
    for _ in range(steps):
        with autocast(precision, device):
            loss = task(batch.to(device), Progress(0, 1, 1))["loss"]
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        times.append(clock())
    if device.type == "cuda":
        torch.cuda.synchronize()
        times[-1] = clock()
    return times


def looped(
    task: Classify,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    steps: int,
    device: torch.device,
    ema: Ema | None,
) -> list[float]:
    """Times of the same steps inside `fit`."""
    clock = clock_of(device)
    loader = OneBatch(batch, clock)
    with tempfile.TemporaryDirectory() as folder:
        job = Job(
            task=task,
            loader=loader,
            optimizer=optimizer,
            rate=lambda step: warmup_cosine(step, total=steps, warmup=5, peak=1e-4),
            total_steps=steps,
            config=RunConfig(save_epochs=0, save_minutes=0),
            world=World(device),
            clip=1.0,
            ema=ema,
            reporters=Reporters([JsonLines(Path(folder))]),
        )
        fit(job)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return [*loader.times, clock()]


def clock_of(device: torch.device) -> Callable[[], float]:
    return time.process_time if device.type == "cpu" else time.perf_counter


def per_step(times: list[float], device: torch.device) -> float:
    """Seconds per step: the median on a CPU; on a GPU, where the host runs ahead, the mean."""
    if device.type == "cuda":
        return (times[-1] - times[0]) / (len(times) - 1)
    return statistics.median(b - a for a, b in itertools.pairwise(times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="xcit_nano_12_p16")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--ema", type=float, default=0.999, help="0 leaves the averaged weights out")
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.manual_seed(0)
    model = create_model(options.model, image_size=options.size)
    task = Classify(model, ClassifyConfig(), DatasetInfo("classify", 1000, ())).to(device)
    images = torch.randn(options.batch, 3, options.size, options.size)
    batch = Batch(
        images, torch.randint(0, 1000, (options.batch,)), names=[str(i) for i in range(options.batch)]
    )
    batch = batch.pin_memory() if device.type == "cuda" else batch
    optimizer = optim.build(task, optim.OptimConfig())
    ema = Ema(model, options.ema) if options.ema else None
    task.train()
    bare(task, optimizer, batch, 3, device)
    looped(task, optimizer, batch, 3, device, ema)
    base, ours = [], []
    for _ in range(options.rounds):
        base.append(per_step(bare(task, optimizer, batch, options.steps, device), device))
        ours.append(per_step(looped(task, optimizer, batch, options.steps, device, ema), device))
    a, b = statistics.median(base), statistics.median(ours)
    print(f"{options.model} {options.size} px, batch {options.batch}, {device}, torch {torch.__version__}")
    print(f"bare {1e3 * a:.2f} ms/step, loop {1e3 * b:.2f} ms/step, overhead {100 * (b / a - 1):+.2f} %")


if __name__ == "__main__":
    main()
