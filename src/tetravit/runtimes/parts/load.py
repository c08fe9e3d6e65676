"""How many of this process's cores other processes use."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

WINDOW_S = 0.1  # shortest interval over which a share of a core is measured
STAT = Path("/proc/stat")


class Times(NamedTuple):
    """now: seconds on the clock. busy: core-seconds of all processes on our cores. own: those of this process."""

    now: float
    busy: float
    own: float


def cores() -> frozenset[int]:
    """The cores on which this process may run."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def times() -> Times | None:
    """The counters of the system; None on systems other than Linux."""
    try:
        lines = STAT.read_text().splitlines()
    except OSError:
        return None
    mine, busy = cores(), 0.0
    tick = os.sysconf("SC_CLK_TCK")
    for line in lines:
        name, *fields = line.split()
        if name.startswith("cpu") and name[3:].isdecimal() and int(name[3:]) in mine:
            user, nice, system, _, _, interrupt, soft, *rest = map(int, fields)
            busy += (
                user + nice + system + interrupt + soft + sum(rest[:1])
            ) / tick  # rest: stolen by other guests
    used = os.times()
    return Times(time.monotonic(), busy, used.user + used.system)


class Load:
    """Cores that other processes keep busy, between one call and the next.

    read: returns the counters. average: without counters, the mean number of running processes, this one included.
    """

    def __init__(
        self, read: Callable[[], Times | None] = times, average: Callable[[], float] | None = None
    ) -> None:
        self._read = read
        self._average = average or _average
        self._last = read()
        self._others = 0.0

    def others(self) -> float:
        """Cores kept busy by other processes since the previous call (or the start), 0.0 to the number of cores."""
        most = float(len(cores()))
        now = self._read()
        if now is None or self._last is None:
            return min(most, max(0.0, self._average() - 1.0))
        passed = now.now - self._last.now
        if passed >= WINDOW_S:
            busy, own = now.busy - self._last.busy, now.own - self._last.own
            self._others = min(most, max(0.0, (busy - own) / passed))
            self._last = now
        return self._others


def free_threads(threads: int, others: float) -> int:
    """How many of `threads` have a core of their own while others keep `others` cores busy; at least one."""
    return max(1, min(threads, round(len(cores()) - others)))


def _average() -> float:
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):  # Windows
        return 1.0
