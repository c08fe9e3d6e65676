"""Run units on a Ray cluster (extra `ray`): one actor per process, elastic from 1 up.

If an actor's node is lost, the actor is recreated elsewhere, and its unit restarted.
"""

import importlib
from collections.abc import Callable, Sequence
from typing import Any

from tetravit.bulk.base import Engine, Settings
from tetravit.bulk.parts.plan import Plan, Unit

TRIES = 10  # attempts per unit if its actor is lost
OPTIONS = ("address", "cpus", "gpus")


class Worker:
    """An actor that runs units; it keeps its model."""

    def run(self, plan: Plan, unit: Unit, device: str) -> None:
        from tetravit.bulk.parts.work import do_unit

        do_unit(plan, unit, device)


def run(plan: Plan, units: Sequence[Unit], settings: Settings, progress: Callable[[int, int], object]) -> str:
    """Run the units on the cluster at `address`, or on a new local one.

    Raises:
        ValueError: without the package, or if a unit's actor is lost repeatedly.
    """
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError:
        raise ValueError("The engine ray needs its package: pip install 'tetravit[ray]'.") from None
    if not ray.is_initialized():
        ray.init(address=settings.options.get("address"), log_to_driver=False, include_dashboard=None)
    cpus, gpus = (float(settings.options.get(name, default)) for name, default in (("cpus", 1), ("gpus", 0)))
    actor = ray.remote(num_cpus=cpus, num_gpus=gpus)(Worker)
    todo, tries, done = list(units), dict.fromkeys(units, 0), 0
    free: list[Any] = []
    running: dict[Any, tuple[Any, Unit]] = {}
    while todo or running:
        have = len(free) + len(running)
        room = max(1, int(ray.cluster_resources().get("CPU", 1) // max(cpus, 1)))
        wanted = min(settings.processes or room, room, len(todo) + len(running))
        free += [actor.remote() for _ in range(wanted - have)]  # for joined nodes, or to replace lost actors
        while todo and free:
            worker, unit = free.pop(), todo.pop(0)
            running[worker.run.remote(plan, unit, settings.device)] = worker, unit
        if not todo:  # free the resources of an idle actor for a pending one
            for worker in free:
                ray.kill(worker)
            free = []
        ready, _ = ray.wait(list(running), num_returns=1)
        for task in ready:
            worker, unit = running.pop(task)
            try:
                ray.get(task)
            except ray.exceptions.RayTaskError as error:
                raise error.as_instanceof_cause() from None
            except (ray.exceptions.RayActorError, ray.exceptions.NodeDiedError) as error:
                tries[unit] += 1
                if tries[unit] == TRIES:
                    raise ValueError(
                        f"The process of unit {unit.name!r} was lost {TRIES} times: {error}."
                    ) from None
                todo.insert(0, unit)
                continue
            free.append(worker)
            done += 1
            progress(done, len(units))
    return ""


ENGINES = {"ray": Engine("actors of a Ray cluster", run, OPTIONS)}
