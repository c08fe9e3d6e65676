"""Models in several forms, measured in turns: every contender in a process of its own, one round each at a time.

Between the rounds the machine's own speed is measured: a large matrix product and a large copy. What a contender
reaches of the first is its share of the floor.
"""

import datetime
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch

from tetravit.benchmark.contenders import CONTENDERS, DTYPES, TRAINING, Mode, Task, serve
from tetravit.benchmark.flops import count
from tetravit.benchmark.speed import device_name
from tetravit.registry import pick

SIDE = {"cpu": 1024, "cuda": 8192}  # of the square matrices whose product is the yardstick
COPY_MIB = 256
YARDSTICK_S = 0.1


@dataclass(frozen=True)
class Contest:
    """One contender on one model at one size.

    images_per_s: median over the rounds; spread: interquartile range over the median; ratio: to timm run eagerly in
    the same run, where it took part. share: of the machine's matrix-product rate (`product_tflops`, two operations
    per multiply-add), counting the model's own multiply-adds, three times those of a forward pass in training.
    peak_mib: above what was in use before a call. failed: why there are no figures.
    """

    model: str
    contender: str
    mode: Mode
    size: int
    batch: int
    dtype: str
    device: str
    threads: int
    macs: int
    images_per_s: float | None
    spread: float | None
    ratio: float | None
    share: float | None
    peak_mib: float | None
    product_tflops: float
    copy_gb_s: float
    rounds: int
    failed: str
    torch: str
    python: str
    date: str


def contest(
    names: Sequence[str],
    contenders: Sequence[str],
    *,
    sizes: Sequence[int] = (224,),
    batch: int = 8,
    mode: Mode = "predict",
    dtype: str = "float32",
    device: torch.device | str = "cpu",
    rounds: int = 7,
    seconds: float = 1.0,
    on_round: Callable[[int], object] = lambda count: None,
) -> list[Contest]:
    """Measure every contender on every model and size.

    Args:
        names: of models of this package.
        contenders: of `CONTENDERS`.
        sizes: image sides in pixels. batch: images per call. mode: `predict` or `train` (forward and backward).
        dtype: of `DTYPES`; timm runs lower precision under autocast.
        device: where. rounds: how often each is measured. seconds: how long a round of one contender is.
        on_round: told 1 after each round of all contenders of a model and size.

    Raises:
        ValueError: for an unknown contender or type, counts below 1, or a contender that cannot train.
    """
    for name in contenders:
        pick(CONTENDERS, name, "contender")
    if dtype not in DTYPES:
        raise ValueError(f"dtype takes one of {', '.join(DTYPES)}; got {dtype!r}.")
    for what, value in (("batch", batch), ("rounds", rounds)):
        if value < 1:
            raise ValueError(f"{what} is 1 or more; got {value}.")
    if mode == "train" and (idle := [name for name in contenders if name not in TRAINING]):
        raise ValueError(f"{idle[0]} does not train; contenders that do: {', '.join(TRAINING)}.")
    device, threads = torch.device(device), torch.get_num_threads()
    rows = []
    for name in names:
        for size in sizes:
            tasks = [Task(name, c, size, batch, dtype, mode, str(device), threads) for c in contenders]
            rows += _one(tasks, rounds, seconds, on_round)
    return rows


def _one(
    tasks: Sequence[Task], rounds: int, seconds: float, on_round: Callable[[int], object]
) -> list[Contest]:
    first = tasks[0]
    device = torch.device(first.device)
    with ExitStack() as stack:
        lines, peaks = [], []
        for task in tasks:  # one builds at a time, so that no measurement of memory disturbs another
            line = stack.enter_context(_process(task))
            lines.append(line)
            peaks.append(_answer(line))
        yardsticks = _yardsticks(device, DTYPES[first.dtype])
        taken: list[list[float]] = [[] for _ in tasks]
        rates: tuple[list[float], list[float]] = ([], [])
        for _ in range(rounds):
            for kept, (work, call) in zip(rates, yardsticks, strict=True):
                kept.append(work / _median_time(call, device))
            for i, line in enumerate(lines):
                if isinstance(peaks[i], str):
                    continue
                line.send(seconds)
                answer = _answer(line)
                if isinstance(answer, str):
                    peaks[i] = answer
                    taken[i].clear()
                else:
                    taken[i].append(statistics.median(answer))
            on_round(1)
        for line, peak in zip(lines, peaks, strict=True):
            if not isinstance(peak, str):
                line.send(None)
    product, copied = (statistics.median(kept) for kept in rates)
    macs = count(first.model, image_size=first.size).macs
    speeds = [first.batch / statistics.median(times) if times else None for times in taken]
    timm = next((s for t, s in zip(tasks, speeds, strict=True) if t.contender == "timm"), None)
    work = 2 * macs * (3 if first.mode == "train" else 1)
    return [
        Contest(
            model=task.model,
            contender=task.contender,
            mode=task.mode,
            size=task.size,
            batch=task.batch,
            dtype=task.dtype,
            device=device_name(device),
            threads=task.threads if device.type == "cpu" else 0,
            macs=macs,
            images_per_s=_rounded(speed, 2),
            spread=_rounded(_spread(times), 4) if times else None,
            ratio=_rounded(speed / timm, 3) if speed and timm else None,
            share=_rounded(speed * work / product, 4) if speed else None,
            peak_mib=None if isinstance(peak, str) else round(peak, 1),
            product_tflops=round(product / 1e12, 4),
            copy_gb_s=round(copied / 1e9, 2),
            rounds=rounds,
            failed=peak if isinstance(peak, str) else "",
            torch=torch.__version__,
            python=platform.python_version(),
            date=datetime.date.today().isoformat(),
        )
        for task, peak, times, speed in zip(tasks, peaks, taken, speeds, strict=True)
    ]


class _process:
    """A contender in a process of its own; inside, the line to it."""

    def __init__(self, task: Task) -> None:
        context = multiprocessing.get_context("spawn")
        self.line, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(task, theirs), daemon=True)
        self.process.start()
        theirs.close()

    def __enter__(self) -> Connection:
        return self.line

    def __exit__(self, *_: object) -> None:
        self.line.close()
        self.process.join(timeout=5)
        if self.process.is_alive():
            self.process.terminate()


def _answer(line: Connection) -> Any:
    """What the contender says; a text where its process has died."""
    try:
        return line.recv()
    except EOFError:
        return "the process ended without a word (out of memory?)"


def _yardsticks(device: torch.device, dtype: torch.dtype) -> list[tuple[float, Callable[[], object]]]:
    """A matrix product with its operations, a copy with its bytes."""
    side = SIDE.get(device.type, 1024)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    source = torch.zeros(COPY_MIB * 2**18, device=device)
    target = torch.empty_like(source)
    return [
        (2.0 * side**3, lambda: torch.mm(a, b)),
        (2.0 * source.numel() * source.element_size(), lambda: target.copy_(source)),
    ]


def _median_time(call: Callable[[], object], device: torch.device) -> float:
    taken: list[float] = []
    while sum(taken) < YARDSTICK_S:
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def _spread(times: Sequence[float]) -> float:
    if len(times) < 2:
        return 0.0
    quarters = statistics.quantiles(times, n=4, method="inclusive")
    return (quarters[2] - quarters[0]) / statistics.median(times)


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
