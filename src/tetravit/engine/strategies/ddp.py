"""Data parallel: every process has the whole model; gradients are averaged over the processes."""

import inspect
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tetravit.engine.strategies.base import Strategy, Wrapped
from tetravit.engine.strategies.parts.norms import share_norms
from tetravit.world import World


class Ddp(Strategy):
    """DistributedDataParallel; BatchNorm statistics are synchronized."""

    def wrap(self, task: nn.Module, world: World) -> Wrapped:
        share_norms(task, world.device)
        # The loop moves batches, so DDP gets no device list; synchronized norms need no broadcast of buffers.
        known = inspect.signature(DistributedDataParallel).parameters
        name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        no_buffers: dict[str, Any] = {name: False}
        static = bool(getattr(task, "static_graph", False))
        module = DistributedDataParallel(
            task, gradient_as_bucket_view=True, static_graph=static, **no_buffers
        )
        return Wrapped(module, module.no_sync)


STRATEGIES = {"ddp": Ddp}
