"""The end of a residual branch, x + drop_path(gamma * linear(y)), in as few passes as possible."""

import torch
from torch import Tensor, nn

from tetravit.kernels.linear import fused_linear
from tetravit.layers.drop_path import DropPath
from tetravit.layers.plain import can_use_fused


def add_linear(
    x: Tensor, linear: nn.Linear, y: Tensor, drop_path: DropPath, gamma: Tensor | None = None
) -> Tensor:
    """x + drop_path(gamma * linear(y)): without drop path, the product is added to the residual in place.

    x: tokens (B, ..., C).
    y: input of the last linear layer of the branch (B, ..., D).
    gamma: learned factors (C,); None: 1.
    """
    if not can_use_fused(x, linear, drop_path) or y.dtype != x.dtype:
        branch = linear(y)
        return x + drop_path(branch if gamma is None else gamma * branch)
    weight: Tensor = linear.weight
    bias: Tensor | None = linear.bias
    if gamma is not None:  # scale the weights instead of all tokens
        weight, bias = gamma[:, None] * weight, None if bias is None else gamma * bias
    keep, tokens = drop_path.mask(x), y.flatten(0, -2)
    if keep is None:
        return fused_linear(tokens, weight, bias, x.flatten(0, -2)).view(x.shape)
    return torch.addcmul(x, keep, fused_linear(tokens, weight, bias).view(x.shape))


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """layer(x) for tokens (B, ..., C), with the bias fused into the product."""
    if not can_use_fused(x, layer):
        return layer(x)
    y = fused_linear(x.flatten(0, -2), layer.weight, layer.bias)
    return y.view(*x.shape[:-1], layer.out_features)
