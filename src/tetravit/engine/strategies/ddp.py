"""Data parallel: every process holds the whole model; gradients are averaged over the processes."""

import torch
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.parallel import DistributedDataParallel

from tetravit.engine.strategies.base import Strategy, Wrapped
from tetravit.world import World


class Ddp(Strategy):
    """Gradients are averaged over the ranks; BatchNorm layers share their statistics."""

    def wrap(self, task: nn.Module, world: World) -> Wrapped:
        share_norms(task, world.device)
        # Batches are moved by the loop, so DDP gets no device list; shared norms leave no buffer to broadcast.
        module = DistributedDataParallel(task, gradient_as_bucket_view=True, broadcast_buffers=False)
        return Wrapped(module, module.no_sync)


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


STRATEGIES = {"ddp": Ddp}
