"""A whole training step, ours beside timm's parts: forward, backward, clipping, AdamW, averaged weights.

    python benchmarks/train_step_against_timm.py [MODEL ...] [--batch 8] [--size 224] [--rounds 9] [--device cpu]
                                                 [--jsonl FILE]

Ours is `fit` with its log, guard and schedule; theirs is the loop of the authors' main.py with timm's optimizer,
mixup, loss and ModelEmaV2 around timm's model. Both train with the same settings on images that are already
there, as a loader that keeps up leaves them. Rounds are interleaved; the medians count, and only their ratio is a
claim. Weights are random: the time does not depend on them.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV2
from torch import nn

from tetravit.benchmark.speed import device_name
from tetravit.engine import optim
from tetravit.engine.distributed import World
from tetravit.engine.ema import Ema
from tetravit.engine.loop import Job, RunConfig, fit
from tetravit.engine.precision import autocast, chosen
from tetravit.models import create_model
from tetravit.structures import Batch
from tetravit.tasks.classify import Classify, ClassifyConfig

THEIRS = {
    "xcit_small_12_p16": "xcit_small_12_p16_224",
    "convit_small": "convit_small",
    "gcvit_tiny": "gcvit_tiny",
    "twins_svt_small": "twins_svt_small",
}
MIX, SMOOTHING, CLIP, DECAY, DROP_PATH = "mixup(0.8) | cutmix(1.0)", 0.1, 5.0, 0.9998, 0.1
SETTINGS = optim.OptimConfig(lr=1e-4, lr_batch=0, clip=CLIP, ema=DECAY)
STEPS = 3  # of a round


class OneBatch:
    """The same images in every step."""

    steps_per_epoch = 1_000_000

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def batches(self, start: int) -> Iterator[list[Batch]]:
        while True:
            yield [self.batch]


def ours(name: str, batch: Batch, device: torch.device) -> Callable[[], None]:
    model = create_model(name, drop_path=DROP_PATH)
    task = Classify(model, ClassifyConfig(label_smoothing=SMOOTHING), num_classes=1000, mix=MIX).to(device)
    ema, optimizer = Ema(model, DECAY, "off"), optim.build(task, SETTINGS)
    config = RunConfig(save_epochs=0, save_minutes=0, kernels="fastest")

    def steps() -> None:
        fit(
            Job(
                task=task,
                loader=OneBatch(batch),
                optimizer=optimizer,
                rate=lambda step: 1e-4,
                total_steps=STEPS,
                config=config,
                world=World(device),
                clip=CLIP,
                ema=ema,
            )
        )

    return steps


def theirs(name: str, batch: Batch, device: torch.device) -> Callable[[], None]:
    model = timm.create_model(THEIRS[name], drop_path_rate=DROP_PATH).to(device).train()
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-4, weight_decay=SETTINGS.weight_decay)
    average = ModelEmaV2(model, decay=DECAY)
    mixup = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=SMOOTHING, num_classes=1000)
    criterion, precision = SoftTargetCrossEntropy(), chosen("auto", device)

    def steps() -> None:
        for _ in range(STEPS):
            images, targets = mixup(batch.images.to(device).clone(), batch.targets.to(device))
            with autocast(precision, device):
                loss = criterion(model(images), targets)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            average.update(model)

    return steps


def seconds(steps: Callable[[], None], device: torch.device) -> float:
    """Per step."""
    start = time.perf_counter()
    steps()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / STEPS


def measure(name: str, batch: Batch, device: torch.device, rounds: int) -> dict[str, float]:
    """Median seconds per step of both, one round each in turn; the first round warms up."""
    sides = {"ours": ours(name, batch, device), "timm": theirs(name, batch, device)}
    taken: dict[str, list[float]] = {who: [] for who in sides}
    for i in range(rounds + 1):
        for who, steps in sides.items():
            passed = seconds(steps, device)
            if i:
                taken[who].append(passed)
    return {who: statistics.median(times) for who, times in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=list(THEIRS))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--jsonl", type=Path, help="append the rows to this file")
    args = parser.parse_args()
    device = torch.device(args.device)
    torch.manual_seed(0)
    images = torch.randn(args.batch, 3, args.size, args.size, device=device)
    batch = Batch(images, torch.randint(1000, (args.batch,), device=device), names=[""] * args.batch)
    print(
        f"{device_name(device)}, torch {torch.__version__}, timm {timm.__version__}, {chosen('auto', device)}"
    )
    print(f"{'model':20}{'ours':>9}{'timm':>9}{'ratio':>8}   images/s of a step, batch {args.batch}")
    for name in args.models:
        middle = measure(name, batch, device, args.rounds)
        row: dict[str, Any] = {
            "model": name,
            "mode": "train_step",
            "batch": args.batch,
            "size": args.size,
            "device": device_name(device),
            "precision": chosen("auto", device),
            "images_per_s": round(args.batch / middle["ours"], 2),
            "timm_images_per_s": round(args.batch / middle["timm"], 2),
            "ratio": round(middle["timm"] / middle["ours"], 3),
            "rounds": args.rounds,
            "torch": torch.__version__,
            "timm": timm.__version__,
            "date": date.today().isoformat(),
            "command": "python benchmarks/train_step_against_timm.py",
        }
        print(
            f"{name:20}{row['images_per_s']:9.1f}{row['timm_images_per_s']:9.1f}{row['ratio']:8.2f}",
            flush=True,
        )
        if args.jsonl:
            with args.jsonl.open("a") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
