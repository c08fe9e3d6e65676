"""The thread that owns a model: it takes jobs from a queue, those of one key together.

Nobody else calls the model, so its caches need no lock, and a call has all threads of the processor.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass(eq=False)
class Job:
    """An image and what is to be done with it.

    run: items -> a result for each; jobs of one `key` have the same. most: items per call.
    """

    key: Hashable
    item: Any
    run: Callable[[Sequence[Any]], Sequence[Any]]
    most: int = 1
    future: "Future[Any]" = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)


class Batcher(threading.Thread):
    """Runs jobs one call after another, in the order in which they came.

    Jobs of the key that is next join the call, up to its `most`. For those that are announced (`coming`), a call
    waits up to `wait_s` after its first job came; a call never waits for requests that were not announced.

    calls: called after each call of the model with the number of items and the seconds it took.
    """

    def __init__(self, name: str, wait_s: float, calls: Callable[[int, float], None] | None = None) -> None:
        super().__init__(name=f"model {name}", daemon=True)
        self._wait_s, self._calls = wait_s, calls
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._coming = 0
        self._open = True

    @contextmanager
    def coming(self) -> Iterator[None]:
        """Announce a job whose image is being read."""
        with self._changed:
            self._coming += 1
        try:
            yield
        finally:
            with self._changed:
                self._coming -= 1
                self._changed.notify()

    def submit(self, job: Job) -> "Future[Any]":
        """Queue a job. Its future has the result; a future that is cancelled in time is never run.

        Raises:
            RuntimeError: after `close`.
        """
        with self._changed:
            if not self._open:
                raise RuntimeError("the thread of the model is closed")
            self._jobs.append(job)
            self._changed.notify()
        return job.future

    @property
    def waiting(self) -> int:
        """Jobs in the queue."""
        return len(self._jobs)

    def close(self) -> None:
        """Finish the jobs in the queue and take no more."""
        with self._changed:
            self._open = False
            self._changed.notify()

    def run(self) -> None:
        while jobs := self._next():
            running = [job for job in jobs if job.future.set_running_or_notify_cancel()]
            if not running:
                continue
            start = time.monotonic()
            try:
                results = running[0].run([job.item for job in running])
                for job, result in zip(running, results, strict=True):
                    job.future.set_result(result)
            except BaseException as error:  # it belongs to the requests; the thread goes on
                for job in running:
                    if not job.future.done():
                        job.future.set_exception(error)
            if self._calls is not None:
                self._calls(len(running), time.monotonic() - start)
            del jobs, running  # images are not kept while the thread waits

    def _next(self) -> list[Job]:
        """The jobs of the next call; none once the thread is closed and the queue is empty."""
        with self._changed:
            while not self._jobs:
                if not self._open:
                    return []
                self._changed.wait()
            first = self._jobs[0]
            while self._coming and self._open:
                left = first.since + self._wait_s - time.monotonic()
                if left <= 0 or sum(job.key == first.key for job in self._jobs) >= first.most:
                    break
                self._changed.wait(left)
            chosen: list[Job] = []
            others: deque[Job] = deque()
            for job in self._jobs:
                fits = job.key == first.key and len(chosen) < first.most
                (chosen if fits else others).append(job)
            self._jobs = others
            return chosen
