"""Units on a cluster of Ray (extra `ray`): one actor for each process, from 1 up to as many as there are.

An actor that is lost with its node is made again elsewhere, and its unit begun again.
"""

import importlib
from collections.abc import Callable, Sequence
from typing import Any

from tetravit.bulk.base import Engine, Settings
from tetravit.bulk.parts.plan import Plan, Unit

TRIES = 10  # of a unit whose actor is lost
OPTIONS = ("address", "cpus", "gpus")


class Worker:
    """Runs units; it keeps its model."""

    def run(self, plan: Plan, unit: Unit, device: str) -> None:
        from tetravit.bulk.parts.work import do_unit

        do_unit(plan, unit, device)


def run(plan: Plan, units: Sequence[Unit], settings: Settings, progress: Callable[[int, int], object]) -> str:
    """Run the units on the cluster at `address`, or one that is started here.

    Raises:
        ValueError: without the package, or if a unit's actor is lost again and again.
    """
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError:
        raise ValueError("The engine ray needs its package: pip install 'tetravit[ray]'.") from None
    if not ray.is_initialized():
        ray.init(address=settings.options.get("address"), log_to_driver=False, include_dashboard=None)
    cpus, gpus = (float(settings.options.get(name, default)) for name, default in (("cpus", 1), ("gpus", 0)))
    actor = ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=-1, max_task_retries=TRIES)(Worker)
    count = settings.processes or max(1, int(ray.cluster_resources().get("CPU", 1) // max(cpus, 1)))
    actors = [actor.remote() for _ in range(min(count, len(units)))]
    todo = list(units)
    running: dict[Any, Any] = {}
    free, done = list(actors), 0
    while todo or running:
        while todo and free:
            worker = free.pop()
            running[worker.run.remote(plan, todo.pop(0), settings.device)] = worker
        ready, _ = ray.wait(list(running), num_returns=1)
        for task in ready:
            free.append(running.pop(task))
            try:
                ray.get(task)
            except ray.exceptions.RayActorError as error:
                raise ValueError(f"A process of Ray was lost {TRIES} times: {error}.") from None
            except ray.exceptions.RayTaskError as error:
                raise error.as_instanceof_cause() from None
            done += 1
            progress(done, len(units))
    return ""


ENGINES = {"ray": Engine("actors of a Ray cluster", run, OPTIONS)}
