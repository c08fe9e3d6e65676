"""Benchmark of models run in several ways: one process per contender, measured in turns.

Between the rounds the peak of the machine is measured: a large matrix product and a large copy. The rate of a
contender over that of the product is its share of the peak.
"""

import contextlib
import datetime
import itertools
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch

from tetravit.benchmark.busy import busy as keep_busy
from tetravit.benchmark.contenders import (
    CONTENDERS,
    DTYPES,
    KEPT,
    TRAINING,
    Mode,
    Ready,
    Task,
    build,
    serve,
)
from tetravit.benchmark.energy import joules
from tetravit.benchmark.flops import count
from tetravit.benchmark.speed import device_name
from tetravit.registry import pick
from tetravit.runtimes.parts import kept

SIDE = {"cpu": 1024, "cuda": 8192}  # side of the square matrices whose product measures the peak
COPY_MIB = 256
YARDSTICK_S = 0.1


@dataclass(frozen=True)
class Contest:
    """One contender on one model at one size.

    images_per_s: median over the rounds; spread: interquartile range over the median; ratio: to timm run eagerly in
    the same run, where it took part. share: of the machine's matrix-product rate (`product_tflops`, two operations
    per multiply-add), counting the model's own multiply-adds, three times those of a forward pass in training.
    peak_mib: above what was in use before a call. failed: why there are no figures. joules_per_image: of all
    processors, or of the GPU, at the power that the turns of the contender took; None: not available on this system.
    process_mib: of its process at the highest point of a call: libraries, weights and programs included; a program
    kept on disk was built by another process. how: backend, threads and parts. build_s: seconds until its
    first output. busy: processes that kept a core busy meanwhile, started by this benchmark. others: cores that other
    processes used during its turns, those included: a row with more than `busy` was made on a busy machine.
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
    joules_per_image: float | None = None
    process_mib: float | None = None
    how: str = ""
    build_s: float | None = None
    busy: int = 0
    others: float | None = None


def contest(
    names: Sequence[str],
    contenders: Sequence[str],
    *,
    sizes: Sequence[int] = (224,),
    batch: int | Sequence[int] = 8,
    mode: Mode = "predict",
    dtype: str = "float32",
    device: torch.device | str = "cpu",
    rounds: int = 7,
    seconds: float = 1.0,
    busy: int = 0,
    on_round: Callable[[int], object] = lambda count: None,
    on_rows: Callable[[Sequence[Contest]], object] = lambda rows: None,
) -> list[Contest]:
    """Measure every contender on every model, size and batch.

    Args:
        names: of models of this package.
        contenders: of `CONTENDERS`.
        sizes: image sides in pixels. batch: images per call, or several such numbers.
        mode: `predict`, `train` (forward and backward) or `step` (and an update by AdamW).
        dtype: of `DTYPES`; timm runs lower precision under autocast.
        device: where. rounds: how often each is measured. seconds: how long a round of one contender is.
        busy: cores that other processes keep busy meanwhile, while contenders are built too.
        on_round: called with 1 after each round of all contenders of a model, size and batch.
        on_rows: called with the rows of each model, size and batch as soon as they are measured.

    Raises:
        ValueError: for an unknown contender or type, counts below 1, or a contender that cannot train.
    """
    for name in contenders:
        pick(CONTENDERS, name, "contender")
    if dtype not in DTYPES:
        raise ValueError(f"dtype takes one of {', '.join(DTYPES)}; got {dtype!r}.")
    batches = [batch] if isinstance(batch, int) else list(batch)
    for what, value in (*(("batch", one) for one in batches), ("rounds", rounds)):
        if value < 1:
            raise ValueError(f"{what} is 1 or more; got {value}.")
    if busy < 0:
        raise ValueError(f"busy is 0 or more; got {busy}.")
    if mode != "predict" and (idle := [name for name in contenders if name not in TRAINING]):
        raise ValueError(f"{idle[0]} does not train; contenders that do: {', '.join(TRAINING)}.")
    device, threads = torch.device(device), torch.get_num_threads()
    rows = []
    with keep_busy(busy):
        for name, size, images in itertools.product(names, sizes, batches):
            tasks = [Task(name, c, size, images, dtype, mode, str(device), threads) for c in contenders]
            rows += (measured := _one(tasks, rounds, seconds, busy, on_round))
            on_rows(measured)
    return rows


def _one(
    tasks: Sequence[Task], rounds: int, seconds: float, busy: int, on_round: Callable[[int], object]
) -> list[Contest]:
    first = tasks[0]
    device = torch.device(first.device)
    with contextlib.ExitStack() as stack:
        lines: list[Connection] = []
        ready: list[Ready | str] = []
        for task in tasks:  # contenders are built one at a time, before any is measured
            if task.contender in KEPT and device.type == "cpu" and kept.limit():
                _build(task)
            lines.append(stack.enter_context(_process(task)))
            ready.append(_reply(lines[-1]))
        energy = joules(device)
        yardsticks = _yardsticks(device, DTYPES[first.dtype])
        taken: list[list[float]] = [[] for _ in tasks]
        watts: list[list[float]] = [[] for _ in tasks]
        others: list[list[float]] = [[] for _ in tasks]
        how = [""] * len(tasks)
        rates: tuple[list[float], list[float]] = ([], [])
        for _ in range(rounds):
            for rate, (work, call) in zip(rates, yardsticks, strict=True):
                rate.append(work / _median_time(call, device))
            for i, line in enumerate(lines):
                if isinstance(ready[i], str):
                    continue
                start, before = time.perf_counter(), energy() if energy else 0.0
                reply = _reply(line, seconds)
                if energy:
                    watts[i].append((energy() - before) / (time.perf_counter() - start))
                if isinstance(reply, str):
                    ready[i] = reply
                    taken[i].clear()
                else:
                    taken[i].append(statistics.median(reply.times))
                    others[i].append(reply.others)
                    how[i] = reply.how
            on_round(1)
        for line, one in zip(lines, ready, strict=True):
            if not isinstance(one, str):
                with contextlib.suppress(OSError):
                    line.send(None)
    product, copied = (statistics.median(rate) for rate in rates)
    macs = count(first.model, image_size=first.size).inference_macs
    speeds = [first.batch / statistics.median(times) if times else None for times in taken]
    timm = next((s for t, s in zip(tasks, speeds, strict=True) if t.contender == "timm"), None)
    work = 2 * macs * (1 if first.mode == "predict" else 3)
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
            peak_mib=None if isinstance(one, str) else round(one.peak_mib, 1),
            product_tflops=round(product / 1e12, 4),
            copy_gb_s=round(copied / 1e9, 2),
            rounds=rounds,
            failed=one if isinstance(one, str) else "",
            torch=torch.__version__,
            python=platform.python_version(),
            date=datetime.date.today().isoformat(),
            joules_per_image=_rounded(statistics.median(power) / speed, 4) if power and speed else None,
            process_mib=None if isinstance(one, str) else round(one.process_mib, 1),
            how=ran,
            build_s=None if isinstance(one, str) else round(one.build_s, 2),
            busy=busy,
            others=round(statistics.median(used), 2) if used else None,
        )
        for task, one, times, speed, power, used, ran in zip(
            tasks, ready, taken, speeds, watts, others, how, strict=True
        )
    ]


def _build(task: Task) -> None:
    """Build a contender with a program on disk in a process of its own."""
    process = multiprocessing.get_context("spawn").Process(target=build, args=(task,), daemon=True)
    process.start()
    process.join()


class _process:
    """The process of a contender, and the connection to it."""

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


def _reply(line: Connection, seconds: float | None = None) -> Any:
    """Request a round of `seconds`, if given, and return the result; a text if the process has ended."""
    try:
        if seconds is not None:
            line.send(seconds)
        return line.recv()
    except (BrokenPipeError, ConnectionResetError, EOFError):
        return "the process ended without an error message (out of memory?)"


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
