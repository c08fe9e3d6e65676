"""The contract of an experiment tracker, and the reporter that calls one in a separate thread."""

import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from tetravit.engine.log import Plan, Record, Reporter, Summary
from tetravit.files import read_json, write_json

SILENT_S = 60.0  # time limit of a call, after which a warning is printed once
CLOSING_S = 60.0  # how long the end of a run waits for pending calls
WRITING = threading.Lock()  # for trackers.json, shared by the threads of several trackers
KEPT = 10_000  # maximum number of pending calls; later ones are dropped
IDENTITIES = "trackers.json"  # in the run folder: ids of the trackers' runs, for resuming


@dataclass(frozen=True)
class RunInfo:
    """Description of a run for a tracker.

    recipe: its sections as plain values. plan: its lines, (label, text). first_step: 0, or the resumed step.
    """

    folder: Path
    run_id: str
    recipe: Mapping[str, Any] = field(default_factory=dict)
    plan: tuple[tuple[str, str], ...] = ()
    first_step: int = 0


class Tracker:
    """One row of the menu `TRACKERS`.

    All methods are called by one thread, on rank 0. An exception ends the tracking with a warning; the run continues.
    package: required package. extra: extra of this package that installs it.
    """

    package: ClassVar[str] = ""
    extra: ClassVar[str] = ""

    def open(self, run: RunInfo, identity: str | None) -> str:
        """Start the tracker's run, or continue the one with the id `identity`; returns its id."""
        raise NotImplementedError

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log numbers after `step` steps, by names such as "train/loss", "val/top1", "time/images_per_s"."""

    def rewind(self, step: int) -> None:
        """The run was rolled back to `step`: later numbers are void."""

    def picture(self, name: str, data: bytes) -> None:
        """Log a picture of the report, a PNG or JPEG file."""

    def artifact(self, path: Path) -> None:
        """Log a file of the finished run: report.html, the weights."""

    def flush(self) -> None:
        """Flush buffers."""

    def close(self) -> None:
        """Finish the run."""


class Tracking(Reporter):
    """Calls one tracker in a thread: an exception or a hang causes a warning and never affects a step.

    Args:
        name: of the tracker.
        tracker: receives the records.
        run: its description; the plan and the first step are added when the run starts.
        warn: prints a warning in one line.
        pictures: returns the pictures of a finished run by name.
        silent_s: time limit of a call.
        closing_s: maximum wait at the end of the run.
    """

    def __init__(
        self,
        name: str,
        tracker: Tracker,
        run: RunInfo,
        warn: Callable[[str], None],
        *,
        pictures: Callable[[Path], Mapping[str, bytes]] = lambda folder: {},
        silent_s: float = SILENT_S,
        closing_s: float = CLOSING_S,
    ) -> None:
        self.name, self.tracker, self.run = name, tracker, run
        self._warn, self._pictures = warn, pictures
        self._silent_s, self._closing_s = silent_s, closing_s
        self._calls: queue.Queue[tuple[Callable[..., Any], tuple[Any, ...]]] = queue.Queue(KEPT)
        self._error: Exception | None = None
        self._busy_since: float | None = None
        self._warned = False
        self._thread: threading.Thread | None = None
        self._done = 0

    def start(self, plan: Plan) -> None:
        run = RunInfo(
            self.run.folder, self.run.run_id, self.run.recipe, tuple(plan.lines), first_step=plan.first_step
        )
        self._thread = threading.Thread(target=self._work, name=f"tracker {self.name}", daemon=True)
        self._thread.start()
        self._send(self._open, run)

    def step(self, record: Record) -> None:
        self._send(self.tracker.scalars, record["step"], _scalars("train", record))

    def evaluated(self, record: Record) -> None:
        self._send(self.tracker.scalars, record["step"], _scalars("val", record))

    def tick(self, done: int) -> None:
        self._done = done
        self._check()

    def stop(self) -> None:
        self._send(self.tracker.flush)
        self._wait()

    def finish(self, summary: Summary) -> None:
        folder = self.run.folder
        for name, data in self._pictures(folder).items():
            self._send(self.tracker.picture, name, data)
        weights = [folder / name for name in ("best.safetensors", "last.safetensors")]
        for path in [folder / "report.html", *[path for path in weights if path.exists()][:1]]:
            if path.exists():
                self._send(self.tracker.artifact, path)
        self._send(self.tracker.close)
        self._wait()

    def mark(self) -> int:
        return self._done

    def rewind(self, mark: int | None) -> None:
        self._done = mark or 0
        self._send(self.tracker.rewind, self._done)

    def _open(self, run: RunInfo) -> None:
        path = run.folder / IDENTITIES
        identity = self.tracker.open(run, read_json(path).get(self.name))
        with WRITING:
            write_json(path, {**read_json(path), self.name: identity})

    def _send(self, call: Callable[..., Any], *values: Any) -> None:
        self._check()
        if self._warned or self._thread is None:
            return
        try:
            self._calls.put_nowait((call, values))
        except queue.Full:
            self._warn_once(
                f"{self.name} is {KEPT:,} records behind and receives no more; the run continues."
            )

    def _check(self) -> None:
        """Warn of a failure, or of a call over the time limit."""
        if self._error is not None:
            error = self._error
            self._warn_once(
                f"{self.name} failed and the run continues without it: {type(error).__name__}: "
                + " ".join(str(error).split())
            )
        elif (since := self._busy_since) is not None and time.monotonic() - since > self._silent_s:
            self._warn_once(
                f"{self.name} has not responded for {self._silent_s:.0f} s; the run continues without it."
            )

    def _warn_once(self, text: str) -> None:
        if not self._warned:
            self._warned = True
            self._warn(text)

    def _wait(self) -> None:
        """Wait until everything is sent, at most `closing_s`."""
        deadline = time.monotonic() + self._closing_s
        while self._calls.unfinished_tasks and not self._warned:
            if time.monotonic() > deadline:
                left = self._calls.unfinished_tasks
                self._warn_once(
                    f"{self.name} did not receive the last {left:,} records; the run is complete."
                )
            time.sleep(0.01)
            self._check()

    def _work(self) -> None:
        while True:
            call, values = self._calls.get()
            if self._error is None:
                self._busy_since = time.monotonic()
                try:
                    call(*values)
                except Exception as error:
                    self._error = error
                self._busy_since = None
            self._calls.task_done()


def _scalars(group: str, record: Record) -> dict[str, float]:
    timing = {f"time/{name}": value for name, value in record.get("timing", {}).items() if name != "left_s"}
    values = {f"{group}/{name}": value for name, value in record.items()}
    return {
        name: float(value)
        for name, value in {**values, **timing}.items()
        if isinstance(value, int | float) and name != f"{group}/step"
    }
