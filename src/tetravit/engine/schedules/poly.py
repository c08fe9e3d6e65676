"""`poly`: from `peak` to `floor` as (1 - step / steps) ** power, as in mmcv 1.x."""

from collections.abc import Callable
from functools import partial
from typing import Any

from tetravit.engine.schedule import poly
from tetravit.engine.schedules.base import Span


def build(span: Span) -> Callable[[int], float]:
    ends: dict[str, Any] = {"peak": span.peak, "start": span.start, "floor": span.floor}
    return partial(poly, total=span.total, warmup=span.warmup, power=span.power, **ends)


SCHEDULES = {"poly": build}
