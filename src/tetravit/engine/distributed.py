"""Several processes, one run: started by torchrun, kept in step, silent except for rank 0."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class World:
    """Where this process stands. control: a gloo group for flags, so that no GPU waits for them."""

    device: torch.device
    rank: int = 0
    size: int = 1
    control: Any = None

    @property
    def leads(self) -> bool:
        """Whether this process writes and prints for all."""
        return self.rank == 0

    def any(self, *flags: bool) -> list[bool]:
        """Per flag: whether it is set on any rank."""
        if self.size == 1:
            return list(flags)
        table = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(table, op=dist.ReduceOp.MAX, group=self.control)
        return [bool(flag) for flag in table.tolist()]

    def gather(self, value: Any) -> list[Any]:
        """The value of every rank, in order of rank; plain data only."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def from_lead(self, value: Any) -> Any:
        """The value that rank 0 has, on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]


def pick_device(wanted: str, local_rank: int = 0) -> torch.device:
    """`auto`, `cpu`, `cuda`, `cuda:1`, `mps` -> a device that is there.

    Raises:
        ValueError: if the machine has no such device.
    """
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise ValueError(f"run.device takes auto, cpu, cuda, cuda:N or mps; got {wanted!r}.") from None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"run.device is {wanted!r}, but torch sees no CUDA device here.")
        device = torch.device("cuda", local_rank if device.index is None else device.index)
        if device.index >= torch.cuda.device_count():
            raise ValueError(
                f"run.device is {str(device)!r}, but there are {torch.cuda.device_count()} CUDA devices."
            )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("run.device is 'mps', but torch sees no MPS device here.")
    return device


@contextmanager
def world(device: str = "auto") -> Iterator[World]:
    """Join the processes that torchrun started; without torchrun, a world of one."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World(pick_device(device))
        return
    rank, local_rank = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    here = pick_device(device, local_rank)
    if here.type == "cuda":
        torch.cuda.set_device(here)
    joined = not dist.is_initialized()
    if joined:
        dist.init_process_group("nccl" if here.type == "cuda" else "gloo")
    try:
        yield World(here, rank, size, dist.new_group(backend="gloo"))
    finally:
        if joined:
            dist.destroy_process_group()


def wrap(task: nn.Module, world: World) -> nn.Module:
    """The module to call for a step: gradients are averaged over the ranks, norms share their statistics."""
    if world.size == 1:
        return task
    share_norms(task, world.device)
    # Batches are moved by the loop, so DDP gets no device list; shared norms leave no buffer to broadcast.
    return DistributedDataParallel(task, gradient_as_bucket_view=True, broadcast_buffers=False)


class SharedBatchNorm(nn.BatchNorm2d):
    """BatchNorm2d whose statistics in training come from the images of all ranks, on a CPU too."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        assert self.running_mean is not None
        assert self.running_var is not None
        count = x.new_full((1,), x.numel() / x.shape[1], dtype=torch.float32)
        sums = all_reduce(torch.cat((x.float().sum((0, 2, 3)), count)))
        total = sums[-1]
        x32 = x.float() - (mean := sums[:-1] / total)[:, None, None]
        var = all_reduce(x32.square().sum((0, 2, 3))) / total
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum or 0.0)
            self.running_var.lerp_(var * total / (total - 1), self.momentum or 0.0)
            self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        x32 = x32 * torch.rsqrt(var + self.eps)[:, None, None]
        return (x32 * self.weight[:, None, None] + self.bias[:, None, None]).to(x.dtype)


def share_norms(module: nn.Module, device: torch.device) -> None:
    """Make every BatchNorm2d inside `module` share its statistics; names and tensors stay as they are.

    On GPUs torch's own SyncBatchNorm does it, which refuses CPU tensors.
    """
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(module)
        return
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            child.__class__ = SharedBatchNorm
