"""Embeddings and predictions of many images: in units, each written whole, by engines that run them.

An engine is a file of this folder; the work itself is in `parts`. A unit is a shard, or a thousand files. Whatever
stops an engine, the same command goes on with the units that are not there.
"""

from tetravit.bulk.base import Engine, Settings
from tetravit.bulk.parts.plan import Plan, Unit, make_plan
from tetravit.registry import discover

ENGINES: dict[str, Engine] = discover(__name__, "ENGINES")

__all__ = ["ENGINES", "Engine", "Plan", "Settings", "Unit", "make_plan"]
