"""Batch norm with precise statistics for channels-last maps.

On a CPU PyTorch sums each channel of a channels-last float32 map in float32 (contiguous maps in float64). That loses
a digit of mean and variance, which gradients of deep models need. Here PyTorch's kernel treats each column of a map
as separate channels, and the statistics are merged in float64.

Shapes: B batch, C channels, H W map.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tetravit.layers.plain import is_capturing, is_transformed
from tetravit.layers.selective_recompute import recomputable


class BatchNorm(nn.BatchNorm2d):
    """BatchNorm2d with exact statistics in training: (B, C, H, W) -> the same; PyTorch's arguments."""

    def forward(self, x: Tensor) -> Tensor:
        if not self._by_columns(x):
            return super().forward(x)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        with torch.no_grad():
            mean, var = statistics(x)
            count = x.numel() // x.shape[1]
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * (count / (count - 1)), self.momentum)
            self.num_batches_tracked.add_(1)
        eps = self.eps
        y: Tensor = _Normed.apply(x, self.weight, self.bias, mean, var, eps)
        return recomputable(y, partial(_normed, eps=eps), x, self.weight, self.bias, mean, var)

    def _by_columns(self, x: Tensor) -> bool:
        """Whether PyTorch's kernel would lose precision; eager mode and default options only."""
        if not self.training or is_capturing() or is_transformed():
            return False
        if not self.affine or not self.track_running_stats or self.momentum is None:
            return False
        if x.device.type != "cpu" or x.ndim != 4 or not x.dtype == self.weight.dtype == torch.float32:
            return False
        return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and (biased) variance of each channel (C,) of a channels-last map (B, C, H, W)."""
    columns = x.permute(0, 2, 3, 1).flatten(2).flatten(0, 1)  # (B * H, W * C), no copy
    by_column = torch.batch_norm_update_stats(columns, None, None, 0.0)
    means, variances = (t.double().view(-1, x.shape[1]) for t in by_column)  # (W, C)
    mean = means.mean(0)
    var = variances.mean(0) + (means - mean).square_().mean(0)
    return mean.float(), var.float()


def _normed(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float) -> Tensor:
    return F.batch_norm(x, mean, var, weight, bias, eps=eps)


class _Normed(torch.autograd.Function):
    """A map normalized by its own given statistics, with PyTorch's gradients."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, var)
        ctx.eps = eps
        return _normed(x, weight, bias, mean, var, eps)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, var = ctx.saved_tensors
        rstd = (var + ctx.eps).rsqrt()
        gradients = torch.ops.aten.native_batch_norm_backward(
            grad, x, weight, None, None, mean, rstd, True, ctx.eps, ctx.needs_input_grad[:3]
        )
        return *gradients, None, None, None
