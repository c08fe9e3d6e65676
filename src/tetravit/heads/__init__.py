"""Heads: feature maps or embeddings -> predictions, loss and decoding included; one head per file."""

from collections.abc import Mapping

from tetravit.heads.base import Head
from tetravit.registry import discover
from tetravit.structures import Kind

HEADS: Mapping[str, type[Head]] = discover(__name__, "HEADS")


def heads_of(kind: Kind) -> dict[str, type[Head]]:
    """The heads of one kind ("classify", "detect", "segment") by name."""
    return {name: head for name, head in HEADS.items() if head.kind == kind}


__all__ = ["HEADS", "Head", "heads_of"]
