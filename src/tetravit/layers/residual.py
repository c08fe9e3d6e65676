"""The end of a residual branch, x + drop_path(gamma * linear(y)), in as few passes as possible."""

from typing import cast

import torch
from torch import Tensor, nn

from tetravit.kernels.linear import fused_linear
from tetravit.layers.drop_path import Draw, DropPath
from tetravit.layers.plain import can_use_fused, is_plain_tree


def drawn(x: Tensor, drop_path: DropPath, *branch: nn.Module) -> Draw | None:
    """The samples of x (B, ...) that take a branch, where it may be computed for them alone; None: for all.

    branch: its modules. With hooks in them it is computed for all samples, and `drop_path` draws later.
    """
    if not drop_path.active or not can_use_fused(x, drop_path) or not is_plain_tree(*branch):
        return None
    return drop_path.draw(x)


def add_linear(
    x: Tensor,
    linear: nn.Linear,
    y: Tensor,
    drop_path: DropPath,
    gamma: Tensor | None = None,
    draw: Draw | None = None,
) -> Tensor:
    """x + drop_path(gamma * linear(y)): without drop path, the product is added to the residual in place.

    x: tokens (B, ..., C).
    y: input of the last linear layer of the branch (B, ..., D); of the samples of `draw` alone, where it is given.
    gamma: learned factors (C,); None: 1.
    """
    if not can_use_fused(x, linear, drop_path) or y.dtype != x.dtype:
        branch = linear(y)
        branch = branch if gamma is None else gamma * branch
        return x + drop_path(branch) if draw is None else draw.add(x, branch)
    weight: Tensor = linear.weight
    bias: Tensor | None = linear.bias
    if gamma is not None:  # scale the weights instead of all tokens
        weight, bias = gamma[:, None] * weight, None if bias is None else gamma * bias
    tokens = y.flatten(0, -2)
    keep = drop_path.mask(x) if draw is None else None
    if draw is not None or keep is not None:
        branch = fused_linear(tokens, weight, bias).view(*y.shape[:-1], len(weight))
        return draw.add(x, branch) if draw is not None else torch.addcmul(x, cast(Tensor, keep), branch)
    return fused_linear(tokens, weight, bias, x.flatten(0, -2)).view(x.shape)


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """layer(x) for tokens (B, ..., C), with the bias fused into the product."""
    if not can_use_fused(x, layer):
        return layer(x)
    y = fused_linear(x.flatten(0, -2), layer.weight, layer.bias)
    return y.view(*x.shape[:-1], layer.out_features)
