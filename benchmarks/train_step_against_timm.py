"""A whole training step, ours beside timm's parts: mixing, forward, backward, clipping, AdamW, averaged weights.

    python benchmarks/train_step_against_timm.py [MODEL ...] [--batch 8] [--size 224] [--rounds 9] [--steps 3]
                                                 [--threads 2] [--device cpu] [--jsonl FILE]

Ours is one run of `fit` with its log, its guard against NaN and its schedule, in float32 on a CPU and as
`precision = "auto"` chooses elsewhere; theirs is the loop of timm's train.py around timm's model, with timm's
optimizer, mixup, loss and ModelEmaV3. The settings are the same, and so are the images, which are already on the
device, as a loader that keeps up leaves them. Both take turns, a few steps each, so that a machine that slows down is
slow for both; the medians over the rounds count, and only their ratio is a claim. On a CPU the ratio of processor
times stands beside it, which a busy machine does not blur. Weights are random: the time does not depend on them.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import nn

from tetravit.benchmark.speed import device_name
from tetravit.data.config import DataConfig
from tetravit.data.datasets.base import DatasetInfo
from tetravit.engine import optim
from tetravit.engine.config import RunConfig
from tetravit.engine.ema import Ema
from tetravit.engine.loop import Job, fit
from tetravit.engine.precision import autocast, chosen
from tetravit.models import create_model
from tetravit.structures import Batch
from tetravit.tasks.classify import Classify, ClassifyConfig
from tetravit.world import World

THEIRS = {  # one model of each family
    "xcit_small_12_p16": "xcit_small_12_p16_224",
    "convit_small": "convit_small",
    "gcvit_tiny": "gcvit_tiny",
    "twins_svt_small": "twins_svt_small",
    "deit_small": "deit_small_patch16_224",
}
SMALL = {  # smaller ones, to try the script with
    "xcit_nano_12_p16": "xcit_nano_12_p16_224",
    "convit_tiny": "convit_tiny",
    "gcvit_xxtiny": "gcvit_xxtiny",
    "deit_tiny": "deit_tiny_patch16_224",
}
LR, CLIP, DECAY, DROP_PATH, SMOOTHING = 1e-4, 5.0, 0.9998, 0.1, 0.1
SETTINGS = optim.OptimConfig(lr=LR, lr_batch=0, clip=CLIP, ema=DECAY, decay="authors")


@dataclass
class Watch:
    """Wall-clock and processor seconds per step, one entry per round."""

    device: torch.device
    wall: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)

    def start(self) -> None:
        self.began = self._now()

    def stop(self, steps: int) -> None:
        wall, processor = self._now()
        self.wall.append((wall - self.began[0]) / steps)
        self.processor.append((processor - self.began[1]) / steps)

    def _now(self) -> tuple[float, float]:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter(), time.process_time()


class Turns:
    """A loader that stops our clock after every few steps and lets the others take as many.

    Between two of these batches `fit` does everything that belongs to a step of ours, so nothing but its steps is
    timed, and it need not be entered anew for each round. The first round warms up.
    """

    steps_per_epoch = 1_000_000

    def __init__(self, batch: Batch, step: Callable[[], None], *, rounds: int, steps: int) -> None:
        self.batch, self.step, self.rounds, self.steps = batch, step, rounds, steps
        self.ours, self.theirs = Watch(batch.images.device), Watch(batch.images.device)

    @property
    def total(self) -> int:
        """Steps of ours; the last one only stops the clock."""
        return (1 + self.rounds) * self.steps + 1

    def batches(self, start: int) -> Iterator[list[Batch]]:
        for _ in range(1 + self.rounds):
            self.ours.start()
            for _ in range(self.steps):
                yield [self.batch]
            self.ours.stop(self.steps)
            self.theirs.start()
            for _ in range(self.steps):
                self.step()
            self.theirs.stop(self.steps)
        yield [self.batch]


def their_step(model: nn.Module, batch: Batch) -> Callable[[], None]:
    """One step of timm's train.py."""
    device = batch.images.device
    optimizer = create_optimizer_v2(model, opt="adamw", lr=LR, weight_decay=SETTINGS.weight_decay)
    average = ModelEmaV3(model, decay=DECAY)
    mixup = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=SMOOTHING, num_classes=1000)
    criterion, precision = SoftTargetCrossEntropy(), chosen("auto", device)
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


def measure(name: str, batch: Batch, *, rounds: int, steps: int) -> Turns:
    """Both sides of one model, in turns."""
    device = batch.images.device
    theirs = timm.create_model({**THEIRS, **SMALL}[name], drop_path_rate=DROP_PATH).to(device).train()
    ours = create_model(name, drop_path=DROP_PATH)
    counts = [sum(p.numel() for p in model.parameters()) for model in (ours, theirs)]
    if counts[0] != counts[1]:
        raise ValueError(f"{name} is not the same model: {counts[0]} parameters, in timm {counts[1]}.")
    mix = "mixup(0.8) | cutmix(1.0)"
    info = DatasetInfo("classify", 1000, ())
    task = Classify(ours, ClassifyConfig(label_smoothing=SMOOTHING), info).to(device)
    task.prepare(DataConfig(name="digits", batch_size=2, mix=mix))
    turns = Turns(batch, their_step(theirs, batch), rounds=rounds, steps=steps)
    fit(
        Job(
            task=task,
            loader=turns,
            optimizer=optim.build(task, SETTINGS),
            rate=lambda step: LR,
            total_steps=turns.total,
            config=RunConfig(save_epochs=0, save_minutes=0, kernels="fastest"),
            world=World(device),
            clip=CLIP,
            ema=Ema(ours, DECAY, warmup=False),
        )
    )
    return turns


def row_of(name: str, turns: Turns, batch: Batch) -> dict[str, Any]:
    """The medians of the rounds after the first."""
    device, count = batch.images.device, len(batch)
    wall, processor = (
        {who: statistics.median(getattr(watch, kind)[1:]) for who, watch in sides.items()}
        for kind, sides in (
            (kind, {"ours": turns.ours, "timm": turns.theirs}) for kind in ("wall", "processor")
        )
    )
    row: dict[str, Any] = {
        "model": name,
        "mode": "train_step",
        "batch": count,
        "size": batch.images.shape[-1],
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "precision": chosen("auto", device),
        "images_per_s": round(count / wall["ours"], 2),
        "timm_images_per_s": round(count / wall["timm"], 2),
        "ratio": round(wall["timm"] / wall["ours"], 3),
    }
    if device.type == "cpu":
        row |= {
            "processor_s": round(processor["ours"], 3),
            "timm_processor_s": round(processor["timm"], 3),
            "processor_ratio": round(processor["timm"] / processor["ours"], 3),
        }
    return row | {
        "rounds": turns.rounds,
        "steps": turns.steps,
        "torch": torch.__version__,
        "timm": timm.__version__,
        "date": date.today().isoformat(),
        "command": "python benchmarks/train_step_against_timm.py",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"default: {' '.join(THEIRS)}")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=3, help="steps of a side in a round")
    parser.add_argument("--threads", type=int, help="of a CPU; default: what torch takes")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--jsonl", type=Path, help="append the rows to this file")
    args = parser.parse_args()
    unknown = [name for name in args.models if name not in {**THEIRS, **SMALL}]
    if unknown:
        parser.error(f"MODEL is one of {', '.join([*THEIRS, *SMALL])}; got {unknown[0]!r}.")
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    images = torch.randn(args.batch, 3, args.size, args.size, device=args.device)
    batch = Batch(images, torch.randint(1000, (args.batch,), device=images.device), names=[""] * args.batch)
    precision = chosen("auto", images.device)
    print(
        f"{device_name(images.device)}, torch {torch.__version__}, timm {timm.__version__}, {precision}, ",
        end="",
    )
    print(
        f"batch {args.batch}, {args.size} px, {args.rounds} rounds of {args.steps} steps; images/s of a step"
    )
    print(f"{'model':20}{'ours':>9}{'timm':>9}{'ratio':>8}{'ratio of processor time':>26}")
    ratios: dict[str, list[float]] = {"ratio": [], "processor_ratio": []}
    for name in args.models or THEIRS:
        row = row_of(name, measure(name, batch, rounds=args.rounds, steps=args.steps), batch)
        last = f"{row['processor_ratio']:26.2f}" if "processor_ratio" in row else f"{'-':>26}"
        print(
            f"{name:20}{row['images_per_s']:9.1f}{row['timm_images_per_s']:9.1f}{row['ratio']:8.2f}{last}",
            flush=True,
        )
        for kind, found in ratios.items():
            found.extend([row[kind]] if kind in row else [])
        if args.jsonl:
            with args.jsonl.open("a") as file:
                file.write(json.dumps(row) + "\n")
    means = [f"{statistics.geometric_mean(found):.3f}" if found else "-" for found in ratios.values()]
    print(f"{'geometric mean':20}{means[0]:>26}{means[1]:>26}")


if __name__ == "__main__":
    main()
