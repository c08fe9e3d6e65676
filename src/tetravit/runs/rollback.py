"""Rollback after a non-finite loss or gradient: `run.on_nan = "rollback"`.

All state is restored from the newest checkpoint: networks, centre, buffers, optimizer. From there to `rollback_steps`
after the bad step, attempt a uses another seed for images, augmentation and stochastic depth, and halves the learning
rate a times. All of this is a function of the step and of the list of attempts, which is in every checkpoint, so that
resuming stays exact and a run without a fault is unchanged. The list is also written to events.jsonl before an
attempt starts: a run killed during an attempt, before its next checkpoint, continues with that attempt.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tetravit.files import replace_file
from tetravit.seeds import mixed
from tetravit.structures import Batch

MOST = 3  # maximum number of attempts within an epoch
MARK = 0x61747470  # separates these random numbers from other uses of the seed
CURES = (
    "Try, in this order: run.precision float32 or bf16; optim.clip=0.3; half of optim.lr;"
    " task.freeze_last_layer=3; a final task.teacher_temp of 0.04; task.last=normed."
)


@dataclass(frozen=True)
class Attempt:
    """One rollback. number: from 1. start: step of the checkpoint; bad: the bad step; until: end of the attempt."""

    number: int
    start: int
    bad: int
    until: int


class Attempts:
    """The attempts of a run, and their effect at each step."""

    def __init__(self, seed: int, earlier: list[dict[str, int]] | None = None) -> None:
        self.seed = seed
        self.made = [Attempt(**row) for row in earlier or []]

    def at(self, step: int) -> int:
        """The number of the attempt at a step; 0: none."""
        return next((a.number for a in reversed(self.made) if a.start <= step < a.until), 0)

    def seed_at(self, step: int) -> int:
        number = self.at(step)
        return mixed(self.seed, MARK, number) if number else self.seed

    def rate(self, rate: Callable[[int], float]) -> Callable[[int], float]:
        """The learning rate, halved once per attempt during an attempt."""
        return lambda step: rate(step) * 0.5 ** self.at(step)

    def add(self, start: int, bad: int, length: int, per_epoch: int) -> Attempt | None:
        """A further attempt from a checkpoint; None: after three within an epoch of the bad step."""
        near = [a for a in self.made if abs(a.bad - bad) <= per_epoch]
        if len(near) >= MOST:
            return None
        attempt = Attempt(len(near) + 1, start, bad, bad + 1 + length)
        self.made.append(attempt)
        return attempt

    def rows(self) -> list[dict[str, int]]:
        return [asdict(attempt) for attempt in self.made]


class Rerouted:
    """A loader that uses another loader during an attempt.

    make: seed -> an equal loader with that seed.
    """

    def __init__(self, loader: Any, attempts: Attempts, make: Callable[[int], Any]) -> None:
        self._loader, self._attempts, self._make = loader, attempts, make

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def batches(self, start: int) -> Iterator[list[Batch]]:
        step = start
        while True:
            number = self._attempts.at(step)
            source = self._make(self._attempts.seed_at(step)) if number else self._loader
            stream = source.batches(step)
            try:
                while self._attempts.at(step) == number:
                    yield next(stream)
                    step += 1
            finally:
                source.close()


def log_event(folder: Path, **event: Any) -> None:
    """Append a line to events.jsonl of a run, atomically, unless it exists."""
    path, line = folder / "events.jsonl", json.dumps(event).encode() + b"\n"
    old = path.read_bytes() if path.exists() else b""
    if line not in old.splitlines(keepends=True):
        replace_file(path, old + line)


def logged_attempts(folder: Path) -> list[dict[str, int]]:
    """The attempts in events.jsonl of a run, in the form of `Attempts.rows`."""
    path = folder / "events.jsonl"
    events = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [
        {"number": e["attempt"], "start": e["checkpoint"], "bad": e["step"], "until": e["until"]}
        for e in events
        if e["event"] == "rollback" and "until" in e
    ]
