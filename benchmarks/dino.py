"""What a step of self-supervision costs: its time beside its parts, its memory with views in groups.

    python benchmarks/dino.py time [MODEL] [--batch 4] [--locals 8] [--rounds 5] [--threads 2] [--device cpu]
    python benchmarks/dino.py memory [MODEL] [--batch 24] [--locals 8] [--threads 2]
    ... [--prototypes 65536] [--jsonl FILE]

time: a whole step (views of 224 and 96 pixels, loss, measures of a collapse, clipping, AdamW, the centre, the
teacher's moving average) beside the sum of what its networks take alone: the teacher forward on the global views, the
student forward and backward on the global and on the local views, both heads. Every part runs in turn in each round,
the first round warms up, and the medians count. On a CPU the ratio of processor times stands beside that of wall
times, which a busy machine does not blur.

memory: peak of a process that takes one step with all views at once, and of one with `task.views_at_once=1`, less
what the imports take. Everything counts: both networks, gradients, the optimizer's state. Linux only.

float32; weights are random: neither time nor memory depends on them.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tetravit.benchmark.speed import device_name
from tetravit.data.datasets.base import DatasetInfo
from tetravit.engine import optim
from tetravit.engine.clipping import clipped
from tetravit.models import create_model
from tetravit.structures import Batch
from tetravit.tasks.base import Progress
from tetravit.tasks.dino import Dino, DinoConfig

GLOBAL, LOCAL = 224, 96  # pixels a side
PROGRESS = Progress(2000, 100_000, 1000)  # the last layer trains


class Step:
    """A self-supervised step on images that are on the device already."""

    def __init__(self, args: argparse.Namespace, views_at_once: int = 0) -> None:
        torch.manual_seed(0)
        self.device = torch.device(args.device)
        config = DinoConfig(
            prototypes=args.prototypes, last="free", local_views=args.locals, views_at_once=views_at_once
        )
        model = create_model(args.model, num_classes=0, drop_path=0.05)
        self.task = Dino(model, config, DatasetInfo("unlabelled", 0, ())).to(self.device).train()
        self.optimizer = optim.build(self.task, optim.OptimConfig(decay="authors"))
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.joint = [list(group) for group in self.task.joint_clip()]
        sides = [GLOBAL] * 2 + [LOCAL] * args.locals
        self.views = [torch.randn(args.batch, 3, side, side, device=self.device) for side in sides]
        self.batch = Batch(self.views[0], views=[Batch(view) for view in self.views[1:]])

    def __call__(self) -> None:
        task = self.task
        task(self.batch, PROGRESS)["loss"].backward()
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        clipped(self.parameters, gradients, 3.0, "each", self.joint)
        task.before_update(PROGRESS)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        task.after_update(PROGRESS, torch.ones((), dtype=torch.bool, device=self.device))

    def parts(self) -> dict[str, Callable[[], None]]:
        """The networks of the step alone: name -> forward, or forward and backward."""
        task, width = self.task, self.task.head.last_layer.weight_v.shape[0]
        groups = {"global": torch.cat(self.views[:2])}
        if len(self.views) > 2:
            groups["local"] = torch.cat(self.views[2:])
        rows = sum(map(len, self.views))
        dim: int = task.model.backbone.embed_dim  # type: ignore[union-attr,assignment]
        embeddings = torch.randn(rows, dim, device=self.device)

        @torch.no_grad()
        def forward(module: nn.Module, x: Tensor) -> None:
            module(x)

        def both(module: nn.Module, x: Tensor, gradient: Tensor) -> None:
            module(x).backward(gradient)
            self.optimizer.zero_grad(set_to_none=True)

        parts: dict[str, Callable[[], None]] = {
            "teacher, global views": lambda: forward(task.teacher, groups["global"]),
            "teacher's head": lambda: forward(task.teacher_head, embeddings[: len(groups["global"])]),
        }
        for name, images in groups.items():
            gradient = torch.randn(len(images), dim, device=self.device)
            parts[f"student, {name} views"] = lambda i=images, g=gradient: both(task.model, i, g)  # type: ignore[misc]
        gradient = torch.randn(rows, width, device=self.device) / rows
        wanted = embeddings.clone().requires_grad_()
        parts["student's head"] = lambda: both(task.head, wanted, gradient)
        return parts

    def timed(self, action: Callable[[], None]) -> tuple[float, float]:
        """Seconds of wall time, and of the processor."""
        clocks = (time.perf_counter, time.process_time)
        self._wait()
        start = [clock() for clock in clocks]
        action()
        self._wait()
        wall, processor = (clock() - began for clock, began in zip(clocks, start, strict=True))
        return wall, processor

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def measure_time(args: argparse.Namespace) -> dict[str, Any]:
    step = Step(args)
    actions = {"step": step, **step.parts()}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in actions}
    for round_ in range(args.rounds + 1):
        for name, action in actions.items():
            found = step.timed(action)
            if round_:
                times[name].append(found)
    wall, processor = (
        {name: statistics.median(pair[kind] for pair in pairs) for name, pairs in times.items()}
        for kind in (0, 1)
    )
    for name, seconds in wall.items():
        print(f"{name:24}{1000 * seconds:10.0f} ms")
    whole, alone = (
        [table["step"] for table in (wall, processor)],
        [sum(v for k, v in table.items() if k != "step") for table in (wall, processor)],
    )
    row: dict[str, Any] = {"step_ms": round(1000 * whole[0]), "parts_ms": round(1000 * alone[0])}
    row["ratio"] = round(whole[0] / alone[0], 3)
    if step.device.type == "cpu":
        row["processor_ratio"] = round(whole[1] / alone[1], 3)
    return row | {"parts": {name: round(1000 * s) for name, s in wall.items() if name != "step"}}


def measure_memory(args: argparse.Namespace) -> dict[str, Any]:
    """Peaks of fresh processes, which print them."""
    peaks = {}
    for at_once in (0, 1):
        command = [sys.executable, __file__, "peak", args.model, "--at-once", str(at_once)]
        for name in ("batch", "locals", "prototypes", "threads", "device"):
            value = getattr(args, name)
            command += [] if value is None else [f"--{name}", str(value)]
        peaks[at_once] = int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        print(f"views at once: {at_once or 'all':4}{peaks[at_once] / 2**20:10,.0f} MiB")
    row: dict[str, Any] = {"all_mib": round(peaks[0] / 2**20), "groups_mib": round(peaks[1] / 2**20)}
    return row | {"ratio": round(peaks[1] / peaks[0], 3)}


def peak(args: argparse.Namespace) -> int:
    """Bytes that one step takes at most, less what the process had before."""
    if args.device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        Step(args, args.at_once)()
        return torch.cuda.max_memory_allocated()
    before = _high_water()
    Step(args, args.at_once)()
    return _high_water() - before


def _high_water() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("time", "memory", "peak"))
    parser.add_argument("model", nargs="?", default="xcit_small_12_p16", metavar="MODEL")
    parser.add_argument("--batch", type=int, help="images; default: 4 for time, 24 for memory")
    parser.add_argument("--locals", type=int, default=8, help="local views of each image")
    parser.add_argument("--prototypes", type=int, default=65536)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of a CPU; default: what torch takes")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--at-once", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--jsonl", type=Path, help="append the row to this file")
    args = parser.parse_args()
    args.batch = args.batch or (4 if args.what == "time" else 24)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.what == "peak":
        print(peak(args))
        return
    about = {
        "what": args.what,
        "model": args.model,
        "batch": args.batch,
        "views": f"2 x {GLOBAL} + {args.locals} x {LOCAL}",
        "prototypes": args.prototypes,
        "device": device_name(torch.device(args.device)),
        "threads": torch.get_num_threads(),
    }
    print(", ".join(f"{name} {value}" for name, value in about.items()), flush=True)
    row = about | (measure_time if args.what == "time" else measure_memory)(args)
    print(
        f"ratio {row['ratio']}"
        + (f", of processor time {row['processor_ratio']}" if "processor_ratio" in row else "")
    )
    row |= {"torch": torch.__version__, "date": date.today().isoformat()}
    row["command"] = f"python benchmarks/dino.py {args.what}"
    if args.jsonl:
        with args.jsonl.open("a") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
