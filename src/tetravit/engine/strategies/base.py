"""The contract of a strategy: how the processes of a run share its work."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from torch import nn

from tetravit.world import World


@dataclass(frozen=True)
class Wrapped:
    """A task, ready for the steps of a run.

    module: what a step calls in place of the task. no_sync: a context for the micro-batches of a step but the
    last, in which gradients stay on this process.
    """

    module: nn.Module
    no_sync: Callable[[], AbstractContextManager[object]]


class Strategy:
    """One row of the menu `STRATEGIES`.

    Raises:
        ValueError: from `wrap`, where the strategy does not fit the processes there are.
    """

    def wrap(self, task: nn.Module, world: World) -> Wrapped:
        """Prepare `task`, which is already on its device. Parameters and their names stay as they are."""
        raise NotImplementedError
