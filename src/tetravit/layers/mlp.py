"""MLP of a transformer block: two linear layers and an exact GELU."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tetravit.kernels.residual_mlp import MlpWeights, residual_mlp
from tetravit.layers.drop_path import DropPath
from tetravit.layers.plain import can_use_fused
from tetravit.layers.residual import add_linear, drawn, linear
from tetravit.layers.selective_recompute import recomputable, recomputable_norm

PART = 2**20  # hidden values per chunk and core, to fit its cache
FUSED_PART = 2**22  # the same in evaluation, where the activation is fused
AT_ONCE = 2**22  # hidden values up to which training takes all tokens at once: faster than chunks


class Mlp(nn.Module):
    """(..., C) -> (..., hidden) -> (..., C)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.fc1(x)
        return self.fc2(recomputable(F.gelu(hidden), F.gelu, hidden))


def add_mlp(
    x: Tensor, mlp: nn.Module, norm: nn.LayerNorm, drop_path: DropPath, gamma: Tensor | None = None
) -> Tensor:
    """x + drop_path(gamma * mlp(norm(x))) for tokens (B, ..., C), in chunks of tokens where that is faster.

    gamma: learned factors (C,); None: 1.
    """
    if type(mlp) is not Mlp or not can_use_fused(x, mlp, norm, drop_path, mlp.fc1, mlp.fc2):
        branch = mlp(recomputable_norm(norm, x))
        return x + drop_path(branch if gamma is None else gamma * branch)
    fc1, fc2 = mlp.fc1, mlp.fc2
    draw = drawn(x, drop_path, mlp, norm)
    rows = x if draw is None else draw.of(x)
    if torch.is_grad_enabled() and rows.numel() // x.shape[-1] * fc1.out_features <= AT_ONCE:
        hidden = linear(fc1, recomputable_norm(norm, rows))
        return add_linear(x, fc2, recomputable(F.gelu(hidden), F.gelu, hidden), drop_path, gamma, draw)
    w2: Tensor = fc2.weight
    b2: Tensor = fc2.bias
    if gamma is not None:  # scale the weights instead of all tokens
        w2, b2 = gamma[:, None] * w2, gamma * b2
    weights = MlpWeights(norm.weight, norm.bias, fc1.weight, fc1.bias, w2, b2)
    tokens = rows.flatten(0, -2)
    keep = None if draw is None else x.new_full((len(tokens), 1), draw.factor)
    values = PART if torch.is_grad_enabled() else FUSED_PART
    most = max(1, values // fc1.out_features) * torch.get_num_threads()
    part = max(1, math.ceil(len(tokens) / max(1, math.ceil(len(tokens) / most))))  # equal chunks
    y = residual_mlp(tokens, keep, weights, norm.eps, part).view(rows.shape)
    return y if draw is None or draw.rows is None else x.index_copy(0, draw.rows, y)
