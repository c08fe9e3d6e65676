"""`cosine`: linear from `start` to `peak`, half a cosine to `floor`, and `floor` during the cooldown."""

from collections.abc import Callable
from functools import partial

from tetravit.engine.schedule import cosine
from tetravit.engine.schedules.base import Span


def build(span: Span) -> Callable[[int], float]:
    return partial(
        cosine,
        total=span.total - span.cooldown,
        warmup=span.warmup,
        peak=span.peak,
        start=span.start,
        floor=span.floor,
    )


SCHEDULES = {"cosine": build}
