"""Detect hanging ranks: every rank sends heartbeats; if those of one stop, the others report it and end.

A rank that is stopped, swapped out or disconnected would make all others wait in a collective for half an hour.
Heartbeats are sent by threads, through a separate store: a long step does not interrupt them.
"""

import os
import platform
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

from tetravit.engine.signals import Interrupted
from tetravit.world import TCPStore, World

WATCHERS = 2  # ranks that monitor all others; two, because one may hang itself
PARTS = 12  # heartbeats per limit


class Pulse:
    """A context in which a rank without heartbeats for `limit_s` makes the others exit with code 75 and a message.

    limit_s: 0: no monitoring. on_end: called on the other ranks before they end. The step in the message is the last
    argument of `at`.
    """

    def __init__(self, world: World, limit_s: float, on_end: Callable[[], object] = lambda: None) -> None:
        self.world, self.limit_s, self.on_end = world, limit_s, on_end
        self.step = 0
        self._left = threading.Event()
        self._heard = time.monotonic()  # time of the store's last response
        self._store: Any = None
        self._hosts: list[str] = []
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        world = self.world
        if world.size == 1 or self.limit_s <= 0 or world.address is None:
            return self
        self._hosts = world.gather(platform.node())
        host, port = world.address
        self._store = TCPStore(
            host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=self.limit_s)
        )
        self._heard = time.monotonic()
        for run in (self._beat, self._watch_store):
            thread = threading.Thread(target=run, name="pulse", daemon=True)
            thread.start()
            self._threads.append(thread)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.set()
        for thread in self._threads:
            thread.join(timeout=self.limit_s / PARTS + 1)

    def at(self, step: int) -> None:
        """Set the step of the main thread, counted from 1."""
        self.step = step

    def _beat(self) -> None:
        """Send heartbeats; on the first ranks, also monitor those of all others."""
        every, rank = self.limit_s / PARTS, self.world.rank
        others = [r for r in range(self.world.size) if r != rank] if rank < WATCHERS else []
        seen = dict.fromkeys(others, (-1, time.monotonic()))
        last = time.monotonic()
        try:
            while not self._left.wait(every):
                now = time.monotonic()
                if (
                    now - last > self.limit_s / 2
                ):  # this process itself was suspended: heartbeats in that time are unknown
                    seen = {other: (count, now) for other, (count, _) in seen.items()}
                last = now
                self._store.add(f"pulse/{rank}", 1)
                hung = self._store.add("pulse/hung", 0)
                for other in others if not hung else []:
                    count = self._store.add(f"pulse/{other}", 0)
                    if count != seen[other][0]:
                        seen[other] = (count, now)
                    elif now - seen[other][1] > self.limit_s and not self._store.add(f"left/{other}", 0):
                        self._store.compare_set("pulse/name", "", str(other))
                        hung = self._store.add("pulse/hung", 1)
                self._heard = time.monotonic()
                if hung:
                    self._end(int(self._store.get("pulse/name")))
            self._store.add(f"left/{rank}", 1)
        except RuntimeError:  # the store's rank has ended: the next collective fails
            self._left.set()

    def _watch_store(self) -> None:
        """The store is in the process of rank 0, or of torchrun beside it: no response means that this process is
        silent."""
        every, last = self.limit_s / PARTS, time.monotonic()
        while not self._left.wait(every):
            now = time.monotonic()
            if now - last > self.limit_s / 2:
                self._heard = now
            last = now
            if self.world.rank and now - self._heard > self.limit_s + 2 * every:
                self._end(0)

    def _end(self, rank: int) -> None:
        if self._left.is_set() or rank == self.world.rank:
            return
        if self.world.rank == (1 if rank == 0 else 0):
            line = f"Rank {rank} ({self._hosts[rank]}) sent no heartbeat for {self.limit_s:.0f} s in step"
            line += f" {self.step}."
            print(line, file=sys.stderr, flush=True)
        self.on_end()
        os._exit(Interrupted.exit_code)
