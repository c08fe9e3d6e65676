"""Optimizers by name; one per file."""

from tetravit.engine.optimizers.base import OptimizerRow
from tetravit.registry import discover

OPTIMIZERS: dict[str, OptimizerRow] = discover(__name__, "OPTIMIZERS")

__all__ = ["OPTIMIZERS", "OptimizerRow"]
