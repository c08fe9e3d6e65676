"""Stochastic depth (Huang et al. 2016, arXiv:1603.09382): a residual branch is skipped per sample."""

from torch import Tensor

from tetravit.seeds import RowLayer, row_uniform


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
