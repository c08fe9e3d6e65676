"""Logging of a run: reporters for its events, and running means."""

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from tetravit.notebook import NotebookBar, in_notebook

Record = dict[str, Any]
PARTS = 5  # loss components shown on the terminal


@dataclass(frozen=True)
class Plan:
    """The plan of a run: (label, text) lines, and the numbers for a progress bar.

    step_seconds: duration of a step, estimated by profiling; 0: unknown.
    """

    lines: Sequence[tuple[str, str]]
    total_steps: int
    steps_per_epoch: int
    first_step: int = 0
    step_seconds: float = 0.0


@dataclass(frozen=True)
class Summary:
    """The result of a run. lines: text to print, with the next command to try."""

    steps: int
    best: float | None
    best_step: int | None
    seconds: float
    run_dir: Path | None = None
    lines: Sequence[str] = field(default_factory=list)


class Reporter:
    """Receives the events of a run. Every method is optional; an error in one never stops the run.

    A record is a flat dict: "step" (steps done), "epoch", then numbers by name. Its "timing" entry contains the
    values that differ between two runs of the same recipe: "images_per_s", "seconds", "left_s".
    """

    name = ""

    def start(self, plan: Plan) -> None:
        """Before the first step."""

    def step(self, record: Record) -> None:
        """Means over the last few steps."""

    def tick(self, done: int) -> None:
        """After every step; `done` steps are done."""

    def evaluating(self) -> None:
        """Before an evaluation."""

    def evaluated(self, record: Record) -> None:
        """Scores of an evaluation; those of the EMA weights begin with "ema_"."""

    def note(self, text: str) -> None:
        """A warning, in one line."""

    def finish(self, summary: Summary) -> None:
        """After the last step."""

    def stop(self) -> None:
        """The run ends without a summary: restore the terminal, close files."""

    def mark(self) -> Any:
        """The position in the log, saved with a checkpoint; None for a reporter without a file."""

    def rewind(self, mark: Any) -> None:
        """Remove the entries after `mark`; None: all entries."""


class Reporters(Reporter):
    """Several reporters as one. Only the first failure of each is reported."""

    def __init__(self, members: Sequence[Reporter]) -> None:
        self.members = list(members)
        self._failed: set[int] = set()

    def start(self, plan: Plan) -> None:
        self._call_all("start", plan)

    def step(self, record: Record) -> None:
        self._call_all("step", record)

    def tick(self, done: int) -> None:
        self._call_all("tick", done)

    def evaluating(self) -> None:
        self._call_all("evaluating")

    def evaluated(self, record: Record) -> None:
        self._call_all("evaluated", record)

    def note(self, text: str) -> None:
        self._call_all("note", text)

    def finish(self, summary: Summary) -> None:
        self._call_all("finish", summary)

    def stop(self) -> None:
        self._call_all("stop")

    def mark(self) -> dict[str, Any]:
        return {
            m.name: mark
            for m, mark in zip(self.members, self._call_all("mark"), strict=True)
            if mark is not None
        }

    def rewind(self, mark: Mapping[str, Any] | None) -> None:
        for member in self.members:
            if mark is None or member.name in mark:
                self._call(member, "rewind", mark and mark[member.name])

    def _call_all(self, event: str, *values: Any) -> list[Any]:
        return [self._call(member, event, *values) for member in self.members]

    def _call(self, member: Reporter, event: str, *values: Any) -> Any:
        try:
            return getattr(member, event)(*values)
        except Exception as error:
            if id(member) not in self._failed:
                self._failed.add(id(member))
                self.note(
                    f"{type(member).__name__} failed, the run continues: {type(error).__name__}: {error}"
                )
            return None


class JsonLines(Reporter):
    """`metrics.jsonl`: one object per record, byte-identical between runs of a recipe; `timing.jsonl` beside it
    contains the timings, which differ."""

    name = "jsonl"

    def __init__(self, run_dir: Path) -> None:
        self.paths = {"metrics": run_dir / "metrics.jsonl", "timing": run_dir / "timing.jsonl"}

    def start(self, plan: Plan) -> None:
        for path in self.paths.values():
            path.touch()

    def step(self, record: Record) -> None:
        self._write("step", record)

    def evaluated(self, record: Record) -> None:
        self._write("evaluation", record)

    def mark(self) -> dict[str, int]:
        return {name: _flushed(path) for name, path in self.paths.items()}

    def rewind(self, mark: Mapping[str, int] | None) -> None:
        for name, path in self.paths.items():
            size = mark[name] if mark else 0
            if path.exists() and path.stat().st_size > size:
                os.truncate(path, size)

    def _write(self, event: str, record: Record) -> None:
        shared = {"event": event, "step": record["step"]}
        timing = {**shared, **record.get("timing", {})}
        metrics = {**shared, **{key: value for key, value in record.items() if key != "timing"}}
        for path, line in ((self.paths["metrics"], metrics), (self.paths["timing"], timing)):
            with path.open("a") as file:
                file.write(json.dumps(line) + "\n")


class TerminalBar:
    """A progress bar on a terminal, below the printed lines."""

    def __init__(self, stream: TextIO, total: int, done: int) -> None:
        from rich.console import Console as Terminal
        from rich.progress import BarColumn, Progress, TextColumn

        self.progress = Progress(
            TextColumn("{task.completed}/{task.total}"),
            BarColumn(bar_width=None),
            TextColumn("{task.description}"),
            console=Terminal(file=stream),
            refresh_per_second=4,
        )
        self._task = self.progress.add_task("", total=total, completed=done)
        self.progress.start()

    def update(self, done: int | None = None, text: str | None = None) -> None:
        self.progress.update(self._task, completed=done, description=text)

    def print(self, text: str) -> None:
        self.progress.console.print(text, markup=False, highlight=False)

    def stop(self) -> None:
        self.progress.stop()


class Console(Reporter):
    """The terminal: a progress bar with loss, accuracy, images/s and time left; plain lines if it is not a terminal.

    In a notebook the bar is below the cell.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self._bar: TerminalBar | NotebookBar | None = None
        self._total = 0
        self._text = ""  # of the last record
        self._from: tuple[float, int] | None = None  # start time and step of the pace measurement
        self._pace_s = 0.0  # per step
        self._evaluating = False

    def start(self, plan: Plan) -> None:
        width = max((len(label) for label, _ in plan.lines), default=0)
        for label, text in plan.lines:
            self._print(f"  {label:<{width}}  {text}")
        self._total = plan.total_steps
        if self.stream.isatty():
            self._bar = TerminalBar(self.stream, plan.total_steps, plan.first_step)
        elif self.stream is sys.stderr and in_notebook():
            self._bar = NotebookBar(plan.total_steps, plan.first_step)

    def step(self, record: Record) -> None:
        text = f"epoch {record['epoch']:.1f}  {_numbers(_shown(record))}"
        timing = record.get("timing", {})
        if timing:
            text += f"  {timing['images_per_s']:.0f} images/s"
        left = f"  {_clock(timing['left_s'])} left" if timing and record["step"] < self._total else ""
        if self._bar is None:
            self._print(f"step {record['step']}/{self._total}  {text}{left}")
        else:
            self._text = f"{text}  "
            self._bar.update(record["step"], f"{text}{left}")

    def tick(self, done: int) -> None:
        if self._bar is None:
            return
        now = time.perf_counter()
        since, first = self._from = self._from or (now, done)
        if done > first:
            self._pace_s = (now - since) / (done - first)
        text = self._text
        if self._pace_s and done < self._total:
            text += f"{_clock(self._pace_s * (self._total - done))} left"
        self._bar.update(done, text)

    def evaluating(self) -> None:
        self._from, self._evaluating = None, True  # the evaluation is excluded from the pace
        if self._bar is not None:
            self._bar.update(text="evaluating")

    def evaluated(self, record: Record) -> None:
        scores = _numbers(_shown_scores(record))
        if self._bar is not None and self._evaluating:  # its last state stays below the cell of a notebook
            self._bar.update(text=self._text)
        self._evaluating = False
        self._print(f"step {record['step']}/{self._total}  epoch {record['epoch']:.1f}  {scores}")

    def note(self, text: str) -> None:
        self._print(f"Warning: {text}")

    def finish(self, summary: Summary) -> None:
        self.stop()
        for line in summary.lines:
            self._print(line)

    def stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _print(self, text: str) -> None:
        if isinstance(self._bar, TerminalBar):
            self._bar.print(text)
        else:
            print(text, file=self.stream, flush=True)


class Meter:
    """Running means of the values of steps, summed on the device; reading them synchronizes."""

    def __init__(self, device: torch.device) -> None:
        self._dtype = torch.float32 if device.type == "mps" else torch.float64
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    @torch.no_grad()
    def add(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            value = value.detach().to(self._dtype)
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._count += 1

    def take(self) -> dict[str, Any]:
        """Return the sums and their count as plain numbers, and reset the meter."""
        state = self.state()
        self._sums, self._count = {}, 0
        return state

    def state(self) -> dict[str, Any]:
        names = list(self._sums)
        values = torch.stack([self._sums[n] for n in names]).tolist() if names else []
        return {"sums": dict(zip(names, values, strict=True)), "count": self._count}

    def load(self, state: Mapping[str, Any], device: torch.device) -> None:
        self._sums = {k: torch.tensor(v, dtype=self._dtype, device=device) for k, v in state["sums"].items()}
        self._count = state["count"]


def pooled(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The meters of several ranks, combined."""
    names = dict.fromkeys(name for state in states for name in state["sums"])
    sums = {name: sum(state["sums"].get(name, 0.0) for state in states) for name in names}
    return {"sums": sums, "count": sum(state["count"] for state in states)}


class Clock:
    """Images per second since the last reading, and the time left."""

    def __init__(self, before_s: float) -> None:
        self._before_s, self._start = before_s, time.perf_counter()
        self._looked, self._images = self._start, 0

    def count(self, images: int) -> None:
        self._images += images

    @property
    def seconds(self) -> float:
        """Seconds since the start of the run, including the time before a resume."""
        return self._before_s + time.perf_counter() - self._start

    def look(self, steps_left: int, steps: int) -> dict[str, float]:
        now = time.perf_counter()
        passed_s = max(now - self._looked, 1e-9)
        rate = self._images / passed_s
        self._looked, self._images = now, 0
        left_s = passed_s / max(steps, 1) * steps_left
        return {"images_per_s": round(rate, 1), "seconds": round(self.seconds, 1), "left_s": round(left_s, 1)}

    def skip(self) -> None:
        """Exclude the time since the last reading (an evaluation)."""
        self._looked, self._images = time.perf_counter(), 0


def _flushed(path: Path) -> int:
    """The size of a file once its content is on disk."""
    if not path.exists():
        return 0
    with path.open("rb+") as file:
        os.fsync(file.fileno())
        return os.fstat(file.fileno()).st_size


def _shown(record: Record) -> Record:
    """The values of a step shown on the terminal: for a detector, the learning rate and the losses."""
    if not any(name.startswith("loss_") for name in record):
        return record
    parts = [name for name in record if name.startswith("loss_")][:PARTS]
    return {name: record[name] for name in ("lr", "loss", *parts) if name in record}


def _shown_scores(record: Record) -> Record:
    """The values of an evaluation shown on the terminal: for a detector, AP and AP50, also of the EMA weights."""
    if "box_ap" not in record:
        return record
    names = ("box_ap", "box_ap50", "mask_ap", "mask_ap50")
    return {name: record[name] for name in (*names, *(f"ema_{n}" for n in names)) if name in record}


def _numbers(record: Record) -> str:
    hidden = ("step", "epoch", "timing", "event")
    return "  ".join(f"{name} {value:.4g}" for name, value in record.items() if name not in hidden)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
