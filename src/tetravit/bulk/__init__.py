"""Embeddings and predictions of many images, in units with atomic results, run by engines.

An engine is a file in this folder; the work itself is in `parts`. A unit is a shard, or a thousand files. After an
interruption, the same command continues with the missing units.
"""

from tetravit.bulk.base import Engine, Settings
from tetravit.bulk.parts.plan import Plan, Unit, make_plan
from tetravit.registry import discover

ENGINES: dict[str, Engine] = discover(__name__, "ENGINES")

__all__ = ["ENGINES", "Engine", "Plan", "Settings", "Unit", "make_plan"]
