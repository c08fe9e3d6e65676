"""Precision of what must not be computed in 16 bits."""

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """In float32 at least: half precision becomes float32, float64 stays."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
