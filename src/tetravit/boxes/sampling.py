"""A random share of the matched candidates takes part in a loss.

Source: mmdet 2.28.2 RandomSampler.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tetravit.boxes.matching import BACKGROUND


@dataclass(frozen=True)
class Sampler:
    """At most `num` candidates, at most `fraction` of them positive; negatives fill what positives leave."""

    num: int
    fraction: float

    def __call__(self, matches: Tensor) -> tuple[Tensor, Tensor]:
        """Matches (N,) -> indices of the positives and of the negatives taken, each ascending."""
        positive = _choose((matches >= 0).nonzero().flatten(), int(self.num * self.fraction))
        negative = _choose((matches == BACKGROUND).nonzero().flatten(), self.num - len(positive))
        return positive, negative


def _choose(indices: Tensor, num: int) -> Tensor:
    if len(indices) <= num:
        return indices
    picked = torch.randperm(len(indices), device=indices.device)[:num]
    return indices[picked].sort().values
