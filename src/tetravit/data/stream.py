"""Results in order, computed in this process or prefetched by worker processes."""

import atexit
import multiprocessing
import signal
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Generic, Protocol, Self, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

PREFETCH = 4  # results each worker prepares ahead


class Pinnable(Protocol):
    """What can be put into page-locked memory."""

    def pin_memory(self) -> Self: ...


Result = TypeVar("Result", bound=Pinnable)


class Stream(Generic[Result]):
    """Results of `prepare` for each job, in order.

    Args:
        prepare: job -> result; with workers it runs in other processes.
        jobs: may be endless.
        workers: processes; 0: none, each result is prepared on demand.
        pin_memory: results in page-locked memory.
    """

    def __init__(
        self, prepare: Callable[[Any], Result], jobs: Iterator[Any], workers: int, pin_memory: bool
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
                prefetch_factor=PREFETCH,
                collate_fn=_unchanged,
                worker_init_fn=_start_worker,
                pin_memory=pin_memory,
                generator=torch.Generator(),  # the global one stays untouched
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
        """Stop the workers; those that hang in a read are killed."""
        self._results = None
        for process in self._processes:
            if process.is_alive():
                process.kill()
            process.join()
        if self._processes:
            atexit.unregister(self.close)
        self._processes = []


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
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def _unchanged(result: Any) -> Any:
    return result
