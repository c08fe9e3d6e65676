"""A model -> the same model in the form that is fastest here; one way of running per file."""

from collections.abc import Mapping

from tetravit.registry import discover
from tetravit.runtimes.base import Backend, CannotRun

BACKENDS: Mapping[str, Backend] = discover(__name__, "BACKENDS")

from tetravit.runtimes.optimize import Optimized, optimize  # noqa: E402  needs the menu

__all__ = ["BACKENDS", "CannotRun", "Optimized", "optimize"]
