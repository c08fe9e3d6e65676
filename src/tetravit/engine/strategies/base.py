"""The contract of a strategy for several processes."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.optim import Optimizer

from tetravit.world import World


@dataclass(frozen=True)
class Wrapped:
    """A task, prepared for training steps.

    module: called in a step in place of the task. no_sync: a context for all micro-batches of a step but the last, in
    which gradients are not reduced. task: the one that trains; None: the task itself, without the following
    functions. sync: copies its weights and buffers into the task, called by all processes before the task is saved or
    evaluated. adopt: replaces the parameters of the optimizer. whole: gathers a tensor of the optimizer.
    """

    module: nn.Module
    no_sync: Callable[[], AbstractContextManager[object]]
    task: Any = None
    sync: Callable[[], None] = lambda: None
    adopt: Callable[[Optimizer], None] = lambda optimizer: None
    whole: Callable[[Tensor], Tensor] = lambda value: value


class Strategy:
    """One row of the menu `STRATEGIES`.

    averages: whether EMA weights (optim.ema) are supported.

    """

    averages: ClassVar[bool] = True

    def check(self, task: nn.Module, world: World) -> None:
        """Check the task and the number of processes, before anything is written.

        Raises:
            ValueError: in one line, if they are not supported.
        """

    def wrap(self, task: nn.Module, world: World) -> Wrapped:
        """Prepare `task`, which is on its device already. Parameters and their names do not change."""
        raise NotImplementedError
