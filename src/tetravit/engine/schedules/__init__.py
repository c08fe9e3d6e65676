"""Schedules: values over a run as pure functions of the step; one per file."""

from collections.abc import Callable

from tetravit.engine.schedules.base import Span
from tetravit.registry import discover

SCHEDULES: dict[str, Callable[[Span], Callable[[int], float]]] = discover(__name__, "SCHEDULES")

__all__ = ["SCHEDULES", "Span"]
