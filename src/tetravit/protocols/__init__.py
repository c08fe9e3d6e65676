"""Evaluation protocols; one per file."""

from tetravit.protocols.base import Loaders, Protocol, ProtocolConfig, Scores
from tetravit.registry import discover

PROTOCOLS: dict[str, type[Protocol]] = discover(__name__, "PROTOCOLS")

__all__ = ["PROTOCOLS", "Loaders", "Protocol", "ProtocolConfig", "Scores"]
