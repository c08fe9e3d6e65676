"""The contract of a strategy: how the processes of a run share its work."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.optim import Optimizer

from tetravit.world import World


@dataclass(frozen=True)
class Wrapped:
    """A task, ready for the steps of a run.

    module: what a step calls in place of the task. no_sync: a context for the micro-batches of a step but the
    last, in which gradients stay on this process. task: the one that trains; None: the task itself, and no more is
    needed. sync: copies its weights and buffers into the task, called by all processes before the task is saved or
    evaluated. adopt: gives the optimizer its parameters. whole: a tensor of the optimizer in full.
    """

    module: nn.Module
    no_sync: Callable[[], AbstractContextManager[object]]
    task: Any = None
    sync: Callable[[], None] = lambda: None
    adopt: Callable[[Optimizer], None] = lambda optimizer: None
    whole: Callable[[Tensor], Tensor] = lambda value: value


class Strategy:
    """One row of the menu `STRATEGIES`.

    averages: whether averaged weights (optim.ema) can be kept.

    """

    averages: ClassVar[bool] = True

    def check(self, task: nn.Module, world: World) -> None:
        """Refuse a task or a number of processes, before anything is written.

        Raises:
            ValueError: in one line.
        """

    def wrap(self, task: nn.Module, world: World) -> Wrapped:
        """Prepare `task`, which is already on its device. Parameters and their names stay as they are."""
        raise NotImplementedError
