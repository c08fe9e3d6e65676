"""BatchNorm synchronized over all processes."""

import torch
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce


class SharedBatchNorm(nn.BatchNorm2d):
    """BatchNorm2d with training statistics over the images of all ranks, on a CPU too."""

    def forward(self, x: Tensor) -> Tensor:
        return _shared(self, x) if self.training else super().forward(x)


class SharedBatchNorm1d(nn.BatchNorm1d):
    """The same for (R, C), as in a projection head."""

    def forward(self, x: Tensor) -> Tensor:
        return _shared(self, x) if self.training else super().forward(x)


def _shared(norm: nn.BatchNorm1d | nn.BatchNorm2d, x: Tensor) -> Tensor:
    """Normalize (B, C, ...) by the statistics of all ranks, and update the running statistics."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    others = (0, *range(2, x.ndim))
    wide = (-1, *[1] * (x.ndim - 2))
    count = x.new_full((1,), x.numel() / x.shape[1], dtype=torch.float32)
    sums = all_reduce(torch.cat((x.float().sum(others), count)))
    total = sums[-1]
    x32 = x.float() - (mean := sums[:-1] / total).view(wide)
    var = all_reduce(x32.square().sum(others)) / total
    with torch.no_grad():
        norm.running_mean.lerp_(mean, norm.momentum or 0.0)
        norm.running_var.lerp_(var * total / (total - 1), norm.momentum or 0.0)
        norm.num_batches_tracked.add_(1)
    x32 = x32 * torch.rsqrt(var + norm.eps).view(wide)
    return (x32 * norm.weight.view(wide) + norm.bias.view(wide)).to(x.dtype)


def share_norms(module: nn.Module, device: torch.device) -> None:
    """Synchronize every BatchNorm inside `module`; names and tensors do not change.

    On GPUs this is torch's SyncBatchNorm, which rejects CPU tensors.
    """
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(module)
        return
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            child.__class__ = SharedBatchNorm
        elif isinstance(child, nn.BatchNorm1d):
            child.__class__ = SharedBatchNorm1d
