"""`dino`: linear from 0 to `peak`, both ends included, then half a cosine that never reaches `floor`."""

from collections.abc import Callable
from functools import partial

from tetravit.engine.schedule import dino_table
from tetravit.engine.schedules.base import Span


def build(span: Span) -> Callable[[int], float]:
    return partial(dino_table, total=span.total, warmup=span.warmup, peak=span.peak, floor=span.floor)


SCHEDULES = {"dino": build}
