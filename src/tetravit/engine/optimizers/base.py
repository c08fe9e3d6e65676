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
    """How an optimizer is built from a recipe.

    build: parameter groups and the `[optim]` section -> the optimizer. Options of its own are in
    `settings.options`. The optimizer keeps its state as tensors per parameter. One whose `defaults["fused"]` is
    true takes `found_inf` as torch's fused ones do, and skips a bad step on the device; any other waits for the
    device in each step. slots: tensors of the size of a parameter that it keeps for each, to estimate memory.
    """

    build: Callable[[Groups, Any], Optimizer]
    slots: Callable[[Any], int] = lambda settings: 1


@cache
def without_compiler(kind: type[Optimizer]) -> type[Optimizer]:
    """An optimizer of torch whose methods do not load torch's compiler, which takes longer than a first step.

    torch wraps them so that its compiler leaves them out of its graphs. The loop compiles models, never optimizers.
    """
    names = ("step", "add_param_group", "zero_grad", "state_dict", "load_state_dict")
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in names}
    methods["step"] = torch.no_grad()(methods["step"])
    return type(kind.__name__, (kind,), methods)


def checked_options(name: str, options: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """`known` with its values replaced by those in `options`.

    Raises:
        ValueError: for an option that is not in `known`.
    """
    for option in options:
        if option not in known:
            takes = f"takes {', '.join(known)}" if known else "takes none"
            raise ValueError(f"{name} has no option {option!r}; it {takes}.")
    return {**known, **options}
