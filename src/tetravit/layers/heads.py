"""One matrix product for several projections of the same tokens, split into heads.

Shapes: B batch, N tokens, C width, D = C // heads.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tetravit.layers.plain import is_plain_module
from tetravit.layers.residual import linear


def to_heads(x: Tensor, layer: nn.Linear, parts: int, num_heads: int) -> tuple[Tensor, ...]:
    """Tokens (B, N, C) -> the parts of one projection, such as queries, keys and values, each (B, heads, N, D).

    In an exported program each part is a separate product, which graph runtimes pass to the attention without a copy;
    splitting one product would copy.
    """
    if torch.compiler.is_exporting() and is_plain_module(layer):
        bias = (None,) * parts if layer.bias is None else layer.bias.chunk(parts)
        pairs = zip(layer.weight.chunk(parts), bias, strict=True)
        return tuple(F.linear(x, w, b).unflatten(2, (num_heads, -1)).transpose(1, 2) for w, b in pairs)
    return linear(layer, x).unflatten(2, (parts, num_heads, -1)).permute(2, 0, 3, 1, 4).unbind()
