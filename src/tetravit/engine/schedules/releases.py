"""`deit_epochs`, `gcvit_steps`: the schedules of the authors' code, with their peculiarities."""

from collections.abc import Callable
from functools import partial
from typing import Any

from tetravit.engine.schedule import deit_epochs, gcvit_steps
from tetravit.engine.schedules.base import Span


def deit(span: Span) -> Callable[[int], float]:
    ends: dict[str, Any] = {"peak": span.peak, "start": span.start, "floor": span.floor}
    warmup = span.warmup // span.per_epoch
    return partial(deit_epochs, per_epoch=span.per_epoch, epochs=span.epochs, warmup=warmup, **ends)


def gcvit(span: Span) -> Callable[[int], float]:
    ends: dict[str, Any] = {"peak": span.peak, "start": span.start, "floor": span.floor}
    return partial(gcvit_steps, total=span.total, cooldown=span.cooldown, warmup=span.warmup, **ends)


SCHEDULES = {"deit_epochs": deit, "gcvit_steps": gcvit}
