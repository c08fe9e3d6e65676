"""Heads: feature maps or embeddings -> predictions, loss and decoding included; one head per file."""

from tetravit.registry import discover

HEADS = discover(__name__, "HEADS")

__all__ = ["HEADS"]
