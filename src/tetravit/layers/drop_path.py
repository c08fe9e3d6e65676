"""Stochastic depth (Huang et al. 2016, arXiv:1603.09382): a residual branch is skipped per sample."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tetravit.seeds import RowLayer, row_uniform


@dataclass(frozen=True)
class Draw:
    """The samples of a batch that take a residual branch.

    rows: their places in the batch (R,); None: all take it. factor: of their branch.
    """

    rows: Tensor | None
    factor: float

    def of(self, x: Tensor) -> Tensor:
        """x (B, ...) -> those samples (R, ...)."""
        return x if self.rows is None else x.index_select(0, self.rows)

    def add(self, x: Tensor, branch: Tensor) -> Tensor:
        """x (B, ...) and the branch of those samples (R, ...) -> their sum (B, ...)."""
        if self.rows is None:
            return torch.add(x, branch, alpha=self.factor)
        return x.index_add(0, self.rows, branch, alpha=self.factor)


class DropPath(RowLayer):
    """Drop the branch of a sample with probability `rate`; scale the kept ones so that the expectation is unchanged.

    In a run the random draw of a sample depends on its index in the batch of the whole step, not on the processes.

    Raises:
        ValueError: if `rate` is not in [0, 1).
    """

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.rate = checked(rate)

    def forward(self, x: Tensor) -> Tensor:
        mask = self.mask(x)
        return x if mask is None else x * mask

    def mask(self, x: Tensor) -> Tensor | None:
        """The factor of the branch for each sample of x (B, 1, ...); None if stochastic depth is inactive."""
        if not self.active:
            return None
        keep = 1.0 - self.rate
        shape = (x.shape[0],) + (1,) * (x.ndim - 1)
        u = row_uniform(self.slot, x.shape[0])
        if u is None:
            return x.new_empty(shape).bernoulli_(keep).div_(keep)
        return (u < keep).to(x.dtype).div_(keep).view(shape)

    def draw(self, x: Tensor) -> Draw:
        """Which samples of x (B, ...) take the branch now, by the same numbers as `mask`; reads them on the host."""
        mask = self.mask(x)
        if mask is None:
            return Draw(None, 1.0)
        rows, factor = mask.flatten().nonzero().flatten(), 1.0 / (1.0 - self.rate)
        if len(rows) == len(x):
            return Draw(None, factor)
        return Draw(rows, factor) if len(rows) else Draw(None, 0.0)  # all alike, rather than none

    @property
    def active(self) -> bool:
        """Whether stochastic depth is active."""
        return self.training and self.rate > 0.0

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3g}"


def linear_rates(rate: float, depth: int) -> list[float]:
    """Stochastic depth rates, linear from 0 at the first of `depth` blocks to `rate` at the last."""
    checked(rate)
    return [rate * i / max(depth - 1, 1) for i in range(depth)]


def checked(rate: float) -> float:
    """Validate `rate`: a probability below 1."""
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"drop_path is a probability in [0, 1); got {rate!r}.")
    return rate
