"""A whole training step, ours beside timm's parts: mixing, forward, backward, clipping, AdamW, averaged weights.

    python benchmarks/train_step_against_timm.py [MODEL ...] [--batch 8] [--size 224] [--rounds 9] [--steps 3]
                                                 [--threads 2] [--device cpu] [--precision auto] [--compile]
                                                 [--jsonl FILE]

Ours is one run of `fit` with its log, its guard against NaN and its schedule; theirs is the loop of timm's train.py
around timm's model, with timm's optimizer, mixup, loss and ModelEmaV3. `auto` is float32 on a CPU; `--compile` is
`run.compile` for ours, and `model.compile()` for theirs. The settings are the same, and so are the images, which are
already on the device, as a loader that keeps up leaves them. Each side has a process of its own. Both take turns, a
few steps each, so that a machine that slows down is slow for both; the medians over the rounds count, and only their
ratio is a claim. On a CPU the ratio of processor times stands beside it, which a busy machine does not blur, and the
peaks of memory: weights, gradients, optimizer, averaged weights and step, above what is in use without a model.
Weights are random: the time does not depend on them.
"""

import argparse
import contextlib
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import nn

from tetravit.benchmark.memory import peak_so_far_mib
from tetravit.benchmark.speed import device_name
from tetravit.data.config import DataConfig
from tetravit.data.datasets.base import DatasetInfo
from tetravit.engine import optim
from tetravit.engine.config import RunConfig
from tetravit.engine.ema import Ema
from tetravit.engine.loop import Job, fit
from tetravit.engine.precision import Precision, autocast, chosen
from tetravit.models import create_model
from tetravit.runtimes.parts.load import Load
from tetravit.structures import Batch
from tetravit.tasks.classify import Classify, ClassifyConfig
from tetravit.world import World

THEIRS = {  # the models of the README
    "xcit_small_12_p16": "xcit_small_12_p16_224",
    "xcit_small_12_p8": "xcit_small_12_p8_224",
    "convit_small": "convit_small",
    "gcvit_tiny": "gcvit_tiny",
    "twins_svt_small": "twins_svt_small",
    "twins_pcpvt_small": "twins_pcpvt_small",
}
MORE = {  # and smaller ones, to try the script with
    "deit_small": "deit_small_patch16_224",
    "xcit_nano_12_p16": "xcit_nano_12_p16_224",
    "convit_tiny": "convit_tiny",
    "gcvit_xxtiny": "gcvit_xxtiny",
    "deit_tiny": "deit_tiny_patch16_224",
}
LR, CLIP, DECAY, DROP_PATH, SMOOTHING = 1e-4, 5.0, 0.9998, 0.1, 0.1
SETTINGS = optim.OptimConfig(lr=LR, lr_batch=0, clip=CLIP, ema=DECAY, decay="authors")


@dataclass(frozen=True)
class Work:
    """What both sides of a contest do: `steps` steps of a batch of random images in each round."""

    model: str
    batch: int
    size: int
    steps: int
    rounds: int
    device: str
    precision: Precision
    compiled: bool
    threads: int

    def images(self) -> Batch:
        torch.manual_seed(0)
        images = torch.randn(self.batch, 3, self.size, self.size, device=self.device)
        targets = torch.randint(1000, (self.batch,), device=images.device)
        return Batch(images, targets, names=[""] * self.batch)


class Turns:
    """A loader that waits for its turn after every few steps, and sends the seconds that they took.

    Between two of these batches `fit` does everything that belongs to a step of ours, so nothing but its steps is
    timed, and it need not be entered anew for each round.
    """

    steps_per_epoch = 1_000_000

    def __init__(self, work: Work, line: Connection) -> None:
        self.work, self.line, self.batch = work, line, work.images()

    @property
    def total(self) -> int:
        """Steps; the last one only ends the last turn."""
        return self.work.rounds * self.work.steps + 1

    def batches(self, start: int) -> Iterator[list[Batch]]:
        for _ in range(self.work.rounds):
            self.line.recv()
            load, before = Load(), clocks(self.batch.images.device)
            for _ in range(self.work.steps):
                yield [self.batch]
            send(self.line, load, before, self.work)
        yield [self.batch]


def clocks(device: torch.device) -> tuple[float, float]:
    """Wall-clock and processor seconds."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter(), time.process_time()


def send(line: Connection, load: Load, before: tuple[float, float], work: Work) -> None:
    """Wall-clock and processor seconds of a step since `before`, the peak of memory, cores that others used."""
    device = torch.device(work.device)
    wall, processor = (now - then for now, then in zip(clocks(device), before, strict=True))
    line.send((wall / work.steps, processor / work.steps, peak_so_far_mib(device), load.others()))


def ours(work: Work, line: Connection) -> None:
    """A run of `fit`, a turn at a time."""
    line.send(begin(work))
    device = torch.device(work.device)
    model = create_model(work.model, drop_path=DROP_PATH)
    info = DatasetInfo("classify", 1000, ())
    task = Classify(model, ClassifyConfig(label_smoothing=SMOOTHING), info).to(device)
    task.prepare(DataConfig(name="digits", batch_size=2, mix="mixup(0.8) | cutmix(1.0)"))
    turns = Turns(work, line)
    settings: Any = {"compile": work.compiled, "precision": work.precision, "kernels": "fastest"}
    fit(
        Job(
            task=task,
            loader=turns,
            optimizer=optim.build(task, SETTINGS),
            rate=lambda step: LR,
            total_steps=turns.total,
            config=RunConfig(save_epochs=0, save_minutes=0, **settings),
            world=World(device),
            clip=CLIP,
            ema=Ema(model, DECAY, warmup=False),
        )
    )


def theirs(work: Work, line: Connection) -> None:
    """The loop of timm's train.py, a turn at a time."""
    line.send(begin(work))
    device = torch.device(work.device)
    model = timm.create_model({**THEIRS, **MORE}[work.model], drop_path_rate=DROP_PATH).to(device).train()
    if work.compiled:
        model.compile()
    step = their_step(model, work.images(), work.precision)
    for _ in range(work.rounds):
        line.recv()
        load, before = Load(), clocks(device)
        for _ in range(work.steps):
            step()
        send(line, load, before, work)


def begin(work: Work) -> float:
    """Set the threads; the memory in use in MiB before there is a model."""
    torch.set_num_threads(work.threads)
    return peak_so_far_mib(torch.device(work.device))


def their_step(model: nn.Module, batch: Batch, precision: Precision) -> Callable[[], None]:
    """One step of timm's train.py."""
    device = batch.images.device
    optimizer = create_optimizer_v2(model, opt="adamw", lr=LR, weight_decay=SETTINGS.weight_decay)
    average = ModelEmaV3(model, decay=DECAY)
    mixup = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=SMOOTHING, num_classes=1000)
    criterion = SoftTargetCrossEntropy()
    scale = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    images = batch.images.clone()  # timm mixes in place; what the pixels are does not matter

    def step() -> None:
        mixed, targets = mixup(images, batch.targets)
        with autocast(precision, device):
            loss = criterion(model(mixed), targets)
        scale.scale(loss).backward()
        scale.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        scale.step(optimizer)
        scale.update()
        optimizer.zero_grad()
        average.update(model)

    return step


SIDES = {"ours": ours, "timm": theirs}


def check_same(name: str) -> None:
    """Raises: ValueError if timm's model is another one."""
    with torch.device("meta"):
        models = create_model(name), timm.create_model({**THEIRS, **MORE}[name])
    counts = [sum(p.numel() for p in model.parameters()) for model in models]
    if counts[0] != counts[1]:
        raise ValueError(f"{name} is not the same model: {counts[0]} parameters, in timm {counts[1]}.")


@dataclass
class Side:
    """One side: wall-clock and processor seconds of a step in each round, MiB, and cores that others used."""

    wall: list[float]
    processor: list[float]
    mib: float
    others: float


def measure(work: Work) -> dict[str, Side]:
    """Both sides, in turns; the first round warms up."""
    check_same(work.model)
    context = multiprocessing.get_context("spawn")
    lines, empty, processes = {}, {}, []
    taken: dict[str, list[tuple[float, ...]]] = {side: [] for side in SIDES}
    try:
        for side, run in SIDES.items():
            lines[side], end = context.Pipe()
            processes.append(context.Process(target=run, args=(work, end), daemon=True))
            processes[-1].start()
            end.close()
            empty[side] = lines[side].recv()
        for _ in range(work.rounds):
            for side, line in lines.items():
                line.send("go")
                taken[side].append(line.recv())
    finally:
        for process in processes:
            with contextlib.suppress(OSError):
                process.terminate()
            process.join()
    return {
        side: Side(
            [r[0] for r in rows[1:]],
            [r[1] for r in rows[1:]],
            rows[-1][2] - empty[side],
            max(r[3] for r in rows[1:]),
        )
        for side, rows in taken.items()
    }


def row_of(work: Work, taken: dict[str, Side]) -> dict[str, Any]:
    """The medians of the rounds after the first."""
    wall = {side: statistics.median(rows.wall) for side, rows in taken.items()}
    processor = {side: statistics.median(rows.processor) for side, rows in taken.items()}
    device, count = torch.device(work.device), work.batch
    row: dict[str, Any] = {
        "model": work.model,
        "mode": "train_step",
        "batch": count,
        "size": work.size,
        "device": device_name(device),
        "threads": work.threads,
        "precision": work.precision,
        "compiled": work.compiled,
        "images_per_s": round(count / wall["ours"], 2),
        "timm_images_per_s": round(count / wall["timm"], 2),
        "ratio": round(wall["timm"] / wall["ours"], 3),
    }
    if device.type == "cpu":
        row |= {
            "processor_s": round(processor["ours"], 3),
            "timm_processor_s": round(processor["timm"], 3),
            "processor_ratio": round(processor["timm"] / processor["ours"], 3),
            "processor_spread": round(max(spread(rows.processor) for rows in taken.values()), 3),
        }
    peaks = {side: rows.mib for side, rows in taken.items()}
    row |= {
        "peak_mib": round(peaks["ours"]),
        "timm_peak_mib": round(peaks["timm"]),
        "peak_ratio": round(peaks["ours"] / peaks["timm"], 3),
        "others": round(
            max(rows.others for rows in taken.values()), 2
        ),  # cores; above 0.2 the machine was busy
    }
    return row | {
        "rounds": work.rounds - 1,
        "steps": work.steps,
        "torch": torch.__version__,
        "timm": timm.__version__,
        "date": date.today().isoformat(),
        "command": "python benchmarks/train_step_against_timm.py",
    }


def spread(values: Sequence[float]) -> float:
    """From the least to the most, over the median."""
    return (max(values) - min(values)) / statistics.median(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"default: {' '.join(THEIRS)}")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=3, help="steps of a side in a round")
    parser.add_argument("--threads", type=int, help="of a CPU; default: what torch takes")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=("auto", "float32", "bf16", "fp16"), default="auto")
    parser.add_argument("--compile", action="store_true", help="both sides through torch.compile")
    parser.add_argument("--jsonl", type=Path, help="append the rows to this file")
    args = parser.parse_args()
    unknown = [name for name in args.models if name not in {**THEIRS, **MORE}]
    if unknown:
        parser.error(f"MODEL is one of {', '.join([*THEIRS, *MORE])}; got {unknown[0]!r}.")
    device = torch.device(args.device)
    precision = chosen(args.precision, device)
    print(f"{device_name(device)}, torch {torch.__version__}, timm {timm.__version__}, {precision}, ", end="")
    print(
        f"batch {args.batch}, {args.size} px, {args.rounds} rounds of {args.steps} steps; images/s of a step"
    )
    print(f"{'model':20}{'ours':>9}{'timm':>9}{'ratio':>8}{'ratio of processor time':>26}{'of memory':>12}")
    ratios: dict[str, list[float]] = {"ratio": [], "processor_ratio": [], "peak_ratio": []}
    for name in args.models or THEIRS:
        work = Work(
            model=name,
            batch=args.batch,
            size=args.size,
            steps=args.steps,
            rounds=args.rounds + 1,
            device=args.device,
            precision=precision,
            compiled=args.compile,
            threads=args.threads or torch.get_num_threads(),
        )
        row = row_of(work, measure(work))
        last = f"{row['processor_ratio']:26.2f}" if "processor_ratio" in row else f"{'-':>26}"
        print(
            f"{name:20}{row['images_per_s']:9.1f}{row['timm_images_per_s']:9.1f}{row['ratio']:8.2f}{last}"
            f"{row['peak_ratio']:12.2f}",
            flush=True,
        )
        for kind, values in ratios.items():
            values.extend([row[kind]] if kind in row else [])
        if args.jsonl:
            with args.jsonl.open("a") as file:
                file.write(json.dumps(row) + "\n")
    means = [f"{statistics.geometric_mean(values):.3f}" if values else "-" for values in ratios.values()]
    print(f"{'geometric mean':20}{means[0]:>26}{means[1]:>26}{means[2]:>12}")


if __name__ == "__main__":
    main()
