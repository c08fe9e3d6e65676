"""Dropout of whole channels, per sample (Tompson et al. 2015, arXiv:1411.4280)."""

import torch
from torch import Tensor, nn

from tetravit.seeds import RowLayer, hashed_uniform, row_keys, row_uniform

PURPOSE = 0x64726F70  # separates these random numbers from other uses of a row's key


class Dropout2d(RowLayer):
    """(B, C, H, W) -> the same: channels are zero with probability `p`, the others scaled by 1 / (1 - p).

    In a run the random draw of a sample depends on its index in the batch of the whole step, not on the processes.

    Raises:
        ValueError: if `p` is not in [0, 1).
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        if not 0.0 <= p < 1.0:
            raise ValueError(f"dropout is a probability in [0, 1); got {p!r}.")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x
        if row_uniform(self.slot, len(x)) is None:
            return nn.functional.dropout2d(x, self.p)
        keys = row_keys(len(x), PURPOSE + self.slot, x.device)[:, None]
        u = hashed_uniform(keys, torch.arange(x.shape[1], device=x.device))  # (B, C)
        return x * (u >= self.p).to(x.dtype).div_(1.0 - self.p)[:, :, None, None]

    def extra_repr(self) -> str:
        return f"p={self.p:.3g}"
