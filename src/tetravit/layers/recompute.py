"""Activation checkpointing: recompute a part of a model in the backward pass."""

from collections.abc import Callable
from typing import Any

from torch.utils.checkpoint import checkpoint

from tetravit.layers.plain import is_capturing
from tetravit.seeds import current, using


def recomputed(function: Callable[..., Any], *inputs: Any) -> Any:
    """`function(*inputs)`, recomputed in the backward pass with the same random numbers."""
    if is_capturing():  # in a captured graph the random numbers are an input
        return checkpoint(function, *inputs, use_reentrant=False)
    rows = current()

    def run(*inputs: Any) -> Any:
        with using(rows):
            return function(*inputs)

    return checkpoint(run, *inputs, use_reentrant=False)
