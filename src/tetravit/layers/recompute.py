"""Activation checkpointing: a part of a model is computed again in the backward pass, and keeps little until then."""

from collections.abc import Callable
from typing import Any

from torch.utils.checkpoint import checkpoint

from tetravit.layers.plain import is_capturing
from tetravit.seeds import current, using


def recomputed(function: Callable[..., Any], *inputs: Any) -> Any:
    """`function(*inputs)`, computed again in the backward pass with the same random numbers."""
    if is_capturing():  # a captured graph holds the numbers as one of its inputs
        return checkpoint(function, *inputs, use_reentrant=False)
    rows = current()

    def run(*inputs: Any) -> Any:
        with using(rows):
            return function(*inputs)

    return checkpoint(run, *inputs, use_reentrant=False)
