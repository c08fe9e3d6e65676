"""Random sampling of matched candidates for a loss.

Source: mmdet 2.28.2 RandomSampler.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tetravit.boxes.matching import BACKGROUND
from tetravit.seeds import current, hashed_uniform, row_keys


@dataclass(frozen=True)
class Sampler:
    """At most `num` candidates, at most `fraction` of them positive; negatives fill the rest."""

    num: int
    fraction: float

    def __call__(self, matches: Tensor, key: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Matches (N,) -> indices of the sampled positives and negatives, each ascending.

        key: scalar int64 from `sampling_keys`; None: use torch's generator.
        """
        positive = _choose((matches >= 0).nonzero().flatten(), int(self.num * self.fraction), key)
        negative = _choose((matches == BACKGROUND).nonzero().flatten(), self.num - len(positive), key)
        return positive, negative


def sampling_keys(images: int, purpose: int, device: torch.device | str) -> Sequence[Tensor | None]:
    """A key per image for `Sampler`, from its index in the batch of the whole step; None outside a run.

    purpose: as in `seeds.row_keys`.
    """
    keys = current().keys
    if keys is None or len(keys) != images:
        return [None] * images
    return list(row_keys(images, purpose, device))


def _choose(indices: Tensor, num: int, key: Tensor | None) -> Tensor:
    count = len(indices)
    if count <= num:
        return indices
    if key is None:
        chosen = torch.randperm(count, device=indices.device)[:num]
    else:  # by candidate index: independent of the padding of the batch
        u = hashed_uniform(key, torch.arange(count, device=indices.device))
        chosen = u.topk(num, largest=False, sorted=False).indices
    return indices[chosen].sort().values
