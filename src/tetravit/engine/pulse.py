"""Ranks that hang are named: every rank gives signs of life, and the others end when those of one stay away.

A rank that is stopped, swapped out or cut off would make all others wait in a collective for half an hour. Threads
send the signs of life, through a store of their own: a long step is no silence.
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

WATCHERS = 2  # ranks that watch all others, so that one of them may hang
PARTS = 12  # signs of life within the limit


class Pulse:
    """While it is entered: a rank that is silent for `limit_s` ends the others with code 75 and a line.

    limit_s: 0: nothing is watched. on_end: called on the other ranks before they end. The step of the line is the
    last argument of `at`.
    """

    def __init__(self, world: World, limit_s: float, on_end: Callable[[], object] = lambda: None) -> None:
        self.world, self.limit_s, self.on_end = world, limit_s, on_end
        self.step = 0
        self._left = threading.Event()
        self._heard = time.monotonic()  # when the store last replied
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
        """The main thread is in `step`, counted from 1."""
        self.step = step

    def _beat(self) -> None:
        """Give signs of life; on the first ranks, watch those of all others."""
        every, rank = self.limit_s / PARTS, self.world.rank
        others = [r for r in range(self.world.size) if r != rank] if rank < WATCHERS else []
        seen = dict.fromkeys(others, (-1, time.monotonic()))
        last = time.monotonic()
        try:
            while not self._left.wait(every):
                now = time.monotonic()
                if (
                    now - last > self.limit_s / 2
                ):  # this process was stopped itself: nobody was heard meanwhile
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
        except RuntimeError:  # the rank that holds the store has ended: the next collective says so
            self._left.set()

    def _watch_store(self) -> None:
        """The store is in the process of rank 0, or of torchrun beside it: no reply is its silence."""
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
            line = f"Rank {rank} ({self._hosts[rank]}) has not answered for {self.limit_s:.0f} s in step {self.step}."
            print(line, file=sys.stderr, flush=True)
        self.on_end()
        os._exit(Interrupted.exit_code)
