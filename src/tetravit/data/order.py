"""The order of training images: which image stands at which position of which epoch, from the seed alone."""

import hashlib

import numpy as np
import torch


class Order:
    """Which image stands at position k of epoch e.

    wide: which images are wider than high; None: that does not matter. group: how many images of one kind then
    stand together: those at the same place of the `group` equal parts of every `micro` positions, so that ranks,
    which take every so-manyth position, get whole groups. A kind whose number does not divide ends in a mixed group.
    weights: (size,) how often an image is drawn, in proportion, independently for every position; None: each image is
    drawn once per epoch.
    """

    def __init__(
        self,
        size: int,
        repeats: int,
        seed: int,
        *,
        wide: np.ndarray | None = None,
        group: int = 1,
        micro: int = 1,
        weights: np.ndarray | None = None,
    ) -> None:
        self.size = size
        self.repeats = repeats
        self.seed = seed
        self.wide, self.group, self.micro = wide, group, micro
        self._shares = None if weights is None else np.cumsum(weights, dtype=np.float64)
        self._epoch = -1
        self._permutation = np.empty(0, dtype=np.int64)

    def image(self, epoch: int, position: int, shift: int = 0) -> int:
        """Number of the image; `shift` > 0: of the image drawn that many places later."""
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(mixed_seed(self.seed, epoch, -1))
            self._permutation, self._epoch = self._drawn(generator), epoch
        return int(self._permutation[(position // self.repeats + shift) % self.size])

    def _drawn(self, generator: torch.Generator) -> np.ndarray:
        """The images of an epoch in order."""
        if self._shares is not None:
            drawn = torch.rand(self.size, dtype=torch.float64, generator=generator).numpy()
            places = np.searchsorted(self._shares, drawn * self._shares[-1], side="right")
            return np.minimum(places, self.size - 1)
        drawn = torch.randperm(self.size, generator=generator).numpy()
        if self.wide is None or self.group == 1:
            return drawn
        kinds = [drawn[self.wide[drawn] == kind] for kind in (True, False)]
        whole = [kind[: len(kind) // self.group * self.group] for kind in kinds]
        groups = np.concatenate(whole).reshape(-1, self.group)
        groups = groups[torch.randperm(len(groups), generator=generator).numpy()]
        rest = np.concatenate([kind[len(part) :] for kind, part in zip(kinds, whole, strict=True)])
        line = np.concatenate((groups.reshape(-1), rest))
        whole_steps = len(line) // self.micro * self.micro
        spread = line[:whole_steps].reshape(-1, self.micro // self.group, self.group).swapaxes(1, 2)
        return np.concatenate((spread.reshape(-1), line[whole_steps:]))


def balancing(classes: np.ndarray, balance: float) -> np.ndarray:
    """How often each image (N,) is drawn: in proportion to the images of its class to the power -balance."""
    counts = np.bincount(classes)
    weights: np.ndarray = counts[classes].astype(np.float64) ** -balance
    return weights


def mixed_seed(*numbers: int) -> int:
    """A well-mixed 63-bit seed from several integers."""
    text = "/".join(map(str, numbers)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1
