"""A model to another format, verified against the model; one target per file."""

from collections.abc import Mapping

from tetravit.exports.base import Target
from tetravit.registry import discover

TARGETS: Mapping[str, Target] = discover(__name__, "TARGETS")

from tetravit.exports.export import DTYPES, Exported, Model, export, place  # noqa: E402  needs the menu

__all__ = ["DTYPES", "TARGETS", "Exported", "Model", "export", "place"]
