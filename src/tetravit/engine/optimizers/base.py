"""The contract of an optimizer."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch.optim import Optimizer

Groups = list[dict[str, Any]]


@dataclass(frozen=True)
class OptimizerRow:
    """Builds an optimizer from a recipe.

    build: parameter groups and the `[optim]` section -> the optimizer. Its specific options are in
    `settings.options`. The optimizer keeps its state as tensors per parameter. If its `defaults["fused"]` is true, it
    accepts `found_inf` as torch's fused optimizers do, and skips a bad step on the device; any other requires a
    synchronization in each step. slots: state tensors of the size of a parameter, per parameter, to estimate memory.
    """

    build: Callable[[Groups, Any], Optimizer]
    slots: Callable[[Any], int] = lambda settings: 1


@cache
def without_compiler(kind: type[Optimizer]) -> type[Optimizer]:
    """A torch optimizer whose methods do not import torch's compiler, which takes longer than a first step.

    torch wraps them to exclude them from compiled graphs. The loop compiles models, never optimizers.
    """
    names = ("step", "add_param_group", "zero_grad", "state_dict", "load_state_dict")
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in names}
    methods["step"] = torch.no_grad()(methods["step"])
    return type(kind.__name__, (kind,), methods)


def checked_options(name: str, options: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """`known` updated with `options`.

    Raises:
        ValueError: for an option that is not in `known`.
    """
    for option in options:
        if option not in known:
            takes = f"takes {', '.join(known)}" if known else "takes none"
            raise ValueError(f"{name} has no option {option!r}; it {takes}.")
    return {**known, **options}
