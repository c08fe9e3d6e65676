"""Attention and attribution maps of models. One method, or several of one kind, per file.

Importing this loads no torch: a file declares its methods, and imports what they need when they run.
"""

from tetravit.explainers.base import Map, Method, Request
from tetravit.registry import discover

EXPLAIN: dict[str, Method] = discover(__name__, "EXPLAIN")

from tetravit.explainers.parts.explanation import Explanation, explain, find, methods_of  # noqa: E402  needs the menu

__all__ = ["EXPLAIN", "Explanation", "Map", "Method", "Request", "explain", "find", "methods_of"]
