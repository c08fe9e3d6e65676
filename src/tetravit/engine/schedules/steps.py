"""`steps`: `peak`, times `gamma` from each of the epochs `milestones` on."""

from collections.abc import Callable
from functools import partial

from tetravit.engine.schedule import staircase
from tetravit.engine.schedules.base import Span


def build(span: Span) -> Callable[[int], float]:
    falls = tuple(epoch * span.per_epoch for epoch in span.milestones)
    return partial(
        staircase, falls=falls, gamma=span.gamma, warmup=span.warmup, peak=span.peak, start=span.start
    )


SCHEDULES = {"steps": build}
