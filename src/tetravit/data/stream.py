"""Results in order, computed in this process or prefetched by worker processes."""

import atexit
import ctypes
import multiprocessing
import os
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Generic, Protocol, Self, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

PREFETCH, LEAST = 4, 2  # prefetched results per worker: maximum, and minimum if memory is short
AHEAD_BYTES = 4 << 30  # total size of prefetched results per process
SHARED_MEMORY = "/dev/shm"
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
KEPT_BYTES = 32 << 20  # the largest threshold of glibc


class Pinnable(Protocol):
    """An object that can be moved to page-locked memory."""

    def pin_memory(self) -> Self: ...


Result = TypeVar("Result", bound=Pinnable)


class Stream(Generic[Result]):
    """Results of `prepare` for each job, in order.

    Args:
        prepare: job -> result; with workers it runs in worker processes.
        jobs: may be infinite.
        workers: processes; 0: none, each result is computed on demand.
        pin_memory: results in page-locked memory.
        result_bytes: approximate size of a result; 0: unknown.

    Raises:
        ValueError: if the shared memory of the system is too small for the workers.
    """

    def __init__(
        self,
        prepare: Callable[[Any], Result],
        jobs: Iterator[Any],
        workers: int,
        pin_memory: bool,
        result_bytes: int = 0,
    ) -> None:
        self._results: Iterator[Result] | None
        self._processes: list[Any] = []
        if not workers:
            results = map(prepare, jobs)
            self._results = (r.pin_memory() for r in results) if pin_memory else results
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the user may choose more workers than cores
            loader: DataLoader[Result] = DataLoader(
                _Lookup(prepare),
                sampler=_Jobs(jobs),
                batch_size=None,
                num_workers=workers,
                prefetch_factor=prefetch(workers, result_bytes),
                collate_fn=_unchanged,
                worker_init_fn=_start_worker,
                pin_memory=pin_memory,
                generator=torch.Generator(),  # leaves the global generator unchanged
            )
            before = set(multiprocessing.active_children())
            self._results = iter(loader)
        self._processes = [p for p in multiprocessing.active_children() if p not in before]
        atexit.register(self.close)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Result:
        if self._results is None:
            raise StopIteration
        return next(self._results)

    def close(self) -> None:
        """Stop the workers; kill those blocked in a read."""
        self._results = None
        for process in self._processes:
            if process.is_alive():
                process.kill()
            process.join()
        if self._processes:
            atexit.unregister(self.close)
        self._processes = []


def prefetch(workers: int, result_bytes: int) -> int:
    """Prefetched results per worker, such that all fit into shared memory.

    Raises:
        ValueError: if `LEAST` per worker do not fit.
    """
    if not result_bytes:
        return PREFETCH
    ahead = min(PREFETCH, max(LEAST, AHEAD_BYTES // (workers * result_bytes)))
    room = _shared_bytes()
    if room is None:
        return ahead
    ahead = min(ahead, max(LEAST, room // (workers * result_bytes)))
    needed = ahead * workers * result_bytes
    if needed > room:
        fitting = room // (LEAST * result_bytes)
        raise ValueError(
            f"{SHARED_MEMORY} has {room / 1e6:,.0f} MB, workers need {needed / 1e6:,.0f} MB; use --shm-size or"
            f" data.workers={fitting}."
        )
    return ahead


def fitting(workers: int, result_bytes: int) -> int:
    """At most `workers`, reduced to the number whose results fit into shared memory; at least 1."""
    room = _shared_bytes()
    if room is None or not result_bytes:
        return workers
    return min(workers, max(1, room // (LEAST * result_bytes)))


def _shared_bytes() -> int | None:
    """Free bytes of file-backed shared memory; None: not present, or unlimited."""
    try:
        status = os.statvfs(SHARED_MEMORY)
    except (OSError, AttributeError):
        return None
    return status.f_bavail * status.f_frsize


class _Lookup(Dataset[Result]):
    """Adapts a function to the interface of a torch data set."""

    def __init__(self, prepare: Callable[[Any], Result]) -> None:
        self.prepare = prepare

    def __getitem__(self, job: Any) -> Result:
        return self.prepare(job)


class _Jobs:
    """Adapts an iterator to the interface of a torch sampler."""

    def __init__(self, jobs: Iterator[Any]) -> None:
        self.jobs = jobs

    def __iter__(self) -> Iterator[Any]:
        return self.jobs


def _start_worker(_worker: int) -> None:
    """Ignore signals to the process group: the parent handles them and stops its workers."""
    keep_freed_memory()
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def keep_freed_memory() -> None:
    """Let this process reuse the memory of processed images.

    By default glibc returns it to the system after each image, and allocating it again costs more than crop and flip.
    No effect under other C libraries.
    """
    with suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
        mallopt(M_TRIM_THRESHOLD, 8 * KEPT_BYTES)


def _unchanged(result: Any) -> Any:
    return result
