"""Sharded data parallel (FSDP2): gradients, optimizer state and weights are sharded over the processes.

A sharded copy of the task trains, one block gathered at a time. The task itself has the full weights, which are
updated from the copy before saving or evaluation; checkpoints and weights files are those of any other strategy.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tetravit.engine.strategies.base import Strategy, Wrapped
from tetravit.engine.strategies.parts.norms import share_norms
from tetravit.world import World


class Fsdp(Strategy):
    """Each process has a shard of every weight between steps, and gathers a block to compute it."""

    averages = False

    def check(self, task: nn.Module, world: World) -> None:
        if world.size == 1:
            raise ValueError("run.strategy=fsdp divides a model over several processes; this run has one.")
        model: Any = task.model
        if {id(p) for p in task.parameters()} != {id(p) for p in model.parameters()}:
            raise ValueError(
                f"run.strategy=fsdp trains a single network; the task {type(task).__name__} has others:"
                " use run.strategy=ddp."
            )

    def wrap(self, task: nn.Module, world: World) -> Wrapped:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, fully_shard

        sharded = copy.deepcopy(task)
        share_norms(sharded, world.device)
        mesh = init_device_mesh(world.device.type, (world.size,))
        inner: Any = sharded.model
        for block in (m for group in inner.backbone.stages()[1:] for m in group):
            if any(p.requires_grad for p in block.parameters()):
                fully_shard(block, mesh=mesh)
        fully_shard(sharded, mesh=mesh)
        assert isinstance(sharded, FSDPModule)

        @contextmanager
        def no_sync() -> Iterator[None]:
            sharded.set_requires_gradient_sync(False)
            try:
                yield
            finally:
                sharded.set_requires_gradient_sync(True)

        return Wrapped(sharded, no_sync, sharded, _copier(sharded, task), _adopter(sharded, task), whole)


def whole(value: Tensor) -> Tensor:
    """A sharded tensor gathered on every process; others unchanged. A collective: all processes call it."""
    gather = getattr(value, "full_tensor", None)
    return value if gather is None else gather()


def _copier(sharded: nn.Module, task: nn.Module) -> Callable[[], None]:
    """Copies the trained weights into the task, on every process."""

    @torch.no_grad()
    def sync() -> None:
        parameters, buffers = dict(task.named_parameters()), dict(task.named_buffers())
        for name, value in sharded.named_parameters():
            parameters[name].copy_(whole(value))
        for name, buffer in sharded.named_buffers():
            buffers[name].copy_(buffer)

    return sync


def _adopter(sharded: nn.Module, task: nn.Module) -> Callable[[Optimizer], None]:
    """Replaces the parameters of an optimizer by the shards, and its state by sharded state."""

    def adopt(optimizer: Optimizer) -> None:
        from torch.distributed.tensor import distribute_tensor

        shards: Any = dict(sharded.named_parameters())
        places = {id(p): shards[name] for name, p in task.named_parameters()}
        for group in optimizer.param_groups:
            group["params"] = [places[id(p)] for p in group["params"]]
            if "fused" in group:
                group["fused"] = False  # fused kernels do not support found_inf with shards
        optimizer.defaults["fused"] = False
        for parameter in list(optimizer.state):
            entry, shard = optimizer.state.pop(parameter), places[id(parameter)]
            optimizer.state[shard] = {
                key: distribute_tensor(value, shard.device_mesh, shard.placements)
                if isinstance(value, Tensor) and value.shape == parameter.shape
                else value
                for key, value in entry.items()
            }

    return adopt


STRATEGIES = {"fsdp": Fsdp}
