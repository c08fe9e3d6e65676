"""A branch comes back to the tokens it left: x + drop_path(gamma * linear(read)), in as few passes as possible."""

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from tetravit.kernels.linear import fused_linear
from tetravit.layers.cache import capturing
from tetravit.layers.drop_path import DropPath


def add_linear(
    x: Tensor, linear: nn.Linear, read: Tensor, drop_path: DropPath, gamma: Tensor | None = None
) -> Tensor:
    """x + drop_path(gamma * linear(read)): the product adds to the residual, where nothing is dropped.

    x: tokens (B, ..., C).
    read: (B, ..., D), what the last linear layer of the branch reads.
    gamma: learned factors (C,); None: 1.
    """
    if drop_path.active or not by_hand(x, linear) or read.dtype != x.dtype:
        branch = linear(read)
        return x + drop_path(branch if gamma is None else gamma * branch)
    weight: Tensor = linear.weight
    bias: Tensor | None = linear.bias
    if gamma is not None:  # a factor of the weights rather than of all tokens
        weight, bias = gamma[:, None] * weight, None if bias is None else gamma * bias
    return fused_linear(read.flatten(0, -2), weight, bias, x.flatten(0, -2)).view(x.shape)


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """layer(x) for tokens (B, ..., C), bias included in the pass of the product."""
    if not by_hand(x, layer):
        return layer(x)  # type: ignore[no-any-return]
    y = fused_linear(x.flatten(0, -2), layer.weight, layer.bias)
    return y.view(*x.shape[:-1], layer.out_features)


def by_hand(x: Tensor, *layers: nn.Module) -> bool:
    """Whether layers may be computed from their parameters: in float32 on a processor, outside of captured graphs.

    Layers that someone has replaced (quantized, adapted), or that someone listens to, are called as they are.
    """
    if x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu") or capturing():
        return False
    if torch._C._are_functorch_transforms_active() or _has_any_global_hook():
        return False
    return untouched(*layers) and all(layer.weight.dtype == x.dtype for layer in layers)


def untouched(*layers: nn.Module) -> bool:
    """Whether layers are PyTorch's own, and nobody listens to them."""
    return all(
        type(layer) in (nn.Linear, nn.LayerNorm)
        and "forward" not in layer.__dict__
        and not (layer._forward_hooks or layer._forward_pre_hooks)
        and not (layer._backward_hooks or layer._backward_pre_hooks)
        for layer in layers
    )
