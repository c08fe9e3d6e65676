"""Run units in processes on this machine. A process that dies is replaced, and its unit restarted."""

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool

from tetravit.bulk.base import Engine, Settings
from tetravit.bulk.parts.plan import Plan, Unit

RESTARTS = 3  # of the process pool, after a process died


def run(plan: Plan, units: Sequence[Unit], settings: Settings, progress: Callable[[int, int], object]) -> str:
    """Run the units here.

    Raises:
        ValueError: if processes die repeatedly.
    """
    from tetravit.bulk.parts.work import do_unit
    from tetravit.data.processes import process_pool

    workers = min(settings.processes or 1, len(units))
    if workers <= 1:
        for done, unit in enumerate(units, start=1):
            do_unit(plan, unit, settings.device)
            progress(done, len(units))
        return ""
    todo = list(units)
    for _ in range(RESTARTS + 1):
        waiting: dict[Future[None], Unit] = {}
        with process_pool(workers, spawn=True) as pool:
            try:
                waiting = {pool.submit(do_unit, plan, unit, settings.device): unit for unit in todo}
                while waiting:
                    ready, _ = wait(waiting, return_when=FIRST_COMPLETED)
                    for future in ready:
                        future.result()
                        todo.remove(waiting.pop(future))
                    progress(len(units) - len(todo), len(units))
                return ""
            except BrokenProcessPool:
                todo = [unit for unit in todo if not plan.file(unit).exists()]
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
    raise ValueError(
        f"Processes died {RESTARTS + 1} times; {len(todo)} units are left, the first {todo[0].name!r}. Fewer"
        " processes, or a smaller batch, need less memory."
    )


ENGINES = {"local": Engine("processes of this machine", run)}
