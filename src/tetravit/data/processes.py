"""Map a function over many arguments in several processes, which end with their parent."""

import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from typing import Any, TypeVar

Result = TypeVar("Result")


def process_pool(workers: int, *, spawn: bool = False) -> ProcessPoolExecutor:
    """A pool of single-threaded processes that also end if the parent is killed.

    spawn: start fresh processes, as GPUs require, instead of forks.
    """
    method = "fork" if sys.platform.startswith("linux") and not spawn else "spawn"
    return ProcessPoolExecutor(
        workers, mp_context=get_context(method), initializer=_start, initargs=(os.getpid(),)
    )


def in_parallel(
    function: Callable[[Any], Result],
    jobs: Sequence[Any],
    workers: int = 0,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> list[Result]:
    """The results of all jobs, in order; if one fails, the started ones finish.

    workers: processes; 0: one per core. progress: called with the number of finished jobs and the total.
    """
    workers = min(workers or os.cpu_count() or 1, len(jobs))
    results: dict[int, Result] = {}
    progress(0, len(jobs))
    if workers <= 1:
        for i, job in enumerate(jobs):
            results[i] = function(job)
            progress(i + 1, len(jobs))
        return [results[i] for i in range(len(jobs))]
    with process_pool(workers) as pool:
        waiting = dict[Future[Result], int]()
        todo = iter(enumerate(jobs))
        try:
            while len(results) < len(jobs):
                while len(waiting) < 2 * workers and (job := next(todo, None)) is not None:
                    waiting[pool.submit(function, job[1])] = job[0]
                done, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    results[waiting.pop(future)] = future.result()
                progress(len(results), len(jobs))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    return [results[i] for i in range(len(jobs))]


def _start(parent: int) -> None:
    import torch

    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
