"""One process."""

from contextlib import nullcontext

from torch import nn

from tetravit.engine.strategies.base import Strategy, Wrapped
from tetravit.world import World


class Single(Strategy):
    """One process; no communication."""

    def wrap(self, task: nn.Module, world: World) -> Wrapped:
        if world.size > 1:
            raise ValueError(
                f"run.strategy is 'single', but torchrun started {world.size} processes; use ddp."
            )
        return Wrapped(task, nullcontext)


STRATEGIES = {"single": Single}
