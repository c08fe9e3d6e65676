"""Our plain models beside timm's, in one run: speed and memory, inference and training step.

    python benchmarks/against_timm.py [MODEL ...] [--batch 8] [--size 224] [--rounds 9] [--threads 2] [--jsonl FILE]

Rounds are interleaved, so that a slowdown of the machine affects both; only the ratio of the
medians is reported. Weights are random: speed does not depend on them. Both run eagerly, in float32. The peak
of a training step is the memory of a process of its own above that before the step, gradients included.
"""

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import timm
import torch
from torch import nn

from tetravit.benchmark.memory import peak_mib
from tetravit.benchmark.speed import device_name
from tetravit.models import create_model

THEIRS = {
    "xcit_small_12_p16": "xcit_small_12_p16_224",
    "xcit_small_12_p8": "xcit_small_12_p8_224",
    "convit_small": "convit_small",
    "gcvit_tiny": "gcvit_tiny",
    "twins_svt_small": "twins_svt_small",
    "twins_pcpvt_small": "twins_pcpvt_small",
}
BUILD: dict[str, Callable[[str], nn.Module]] = {
    "ours": create_model,
    "timm": lambda name: timm.create_model(THEIRS[name]),
}


def predict(model: nn.Module, images: torch.Tensor) -> None:
    with torch.inference_mode():
        model(images)


def train(model: nn.Module, images: torch.Tensor) -> None:
    model(images).square().mean().backward()
    model.zero_grad(set_to_none=True)


MODES = {"predict": predict, "train": train}


def times(name: str, mode: str, images: torch.Tensor, rounds: int) -> dict[str, list[float]]:
    """Seconds per call of both, one call each in turn."""
    models = {who: build(name).train(mode == "train") for who, build in BUILD.items()}
    taken: dict[str, list[float]] = {who: [] for who in models}
    for i in range(rounds + 1):
        for who, model in models.items():
            start = time.perf_counter()
            MODES[mode](model, images)
            if i:  # the first round warms up
                taken[who].append(time.perf_counter() - start)
    return taken


def spread(taken: list[float]) -> float:
    """The middle half of the times, from end to end, as a share of their median."""
    low, middle, high = statistics.quantiles(taken, n=4)
    return (high - low) / middle


def peak(who: str, name: str, shape: tuple[int, ...], threads: int) -> float:
    """MiB of a training step, in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (who, name, shape, threads))


def _peak(who: str, name: str, shape: tuple[int, ...], threads: int) -> float:
    torch.set_num_threads(threads)
    model, images = BUILD[who](name).train(), torch.randn(*shape)
    return peak_mib(lambda: train(model, images), torch.device("cpu"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=list(THEIRS))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--jsonl", type=Path, help="append the rows to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    shape = (args.batch, 3, args.size, args.size)
    images = torch.randn(*shape)
    print(f"{device_name(torch.device('cpu'))}, {args.threads} threads, torch {torch.__version__}, ", end="")
    print(f"timm {timm.__version__}, float32, batch {args.batch}, {args.size} px, {args.rounds} rounds")
    print(
        f"{'model':20}{'mode':9}{'ours':>9}{'timm':>9}{'ratio':>8}{'spread':>8}{'timm':>8}   "
        "images/s; spread of both; peak MiB of a step"
    )
    ratios: dict[str, list[float]] = {mode: [] for mode in MODES}
    for name in args.models:
        for mode in MODES:
            taken = times(name, mode, images, args.rounds)
            middle = {who: statistics.median(t) for who, t in taken.items()}
            row = {
                "model": name,
                "mode": mode,
                "batch": args.batch,
                "size": args.size,
                "threads": args.threads,
                "device": device_name(torch.device("cpu")),
                "images_per_s": round(args.batch / middle["ours"], 2),
                "timm_images_per_s": round(args.batch / middle["timm"], 2),
                "ratio": round(middle["timm"] / middle["ours"], 3),
                "spread": round(spread(taken["ours"]), 3),
                "timm_spread": round(spread(taken["timm"]), 3),
                "rounds": args.rounds,
                "torch": torch.__version__,
                "timm": timm.__version__,
                "date": date.today().isoformat(),
                "command": "python benchmarks/against_timm.py",
            }
            note = ""
            if mode == "train":
                row |= {
                    f"{who}_peak_mib": round(peak(who, name, shape, args.threads), 1)
                    for who in ("ours", "timm")
                }
                note = f"   {row['ours_peak_mib']:.0f} / {row['timm_peak_mib']:.0f} MiB"
            ratios[mode].append(row["ratio"])
            print(
                f"{name:20}{mode:9}{row['images_per_s']:9.1f}{row['timm_images_per_s']:9.1f}{row['ratio']:8.2f}"
                f"{row['spread']:8.1%}{row['timm_spread']:8.1%}{note}",
                flush=True,
            )
            if args.jsonl:
                with args.jsonl.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    for mode, values in ratios.items():
        print(f"{'geometric mean':20}{mode:9}{'':18}{statistics.geometric_mean(values):8.2f}")


if __name__ == "__main__":
    main()
