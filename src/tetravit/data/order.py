"""The order of training images: the image at each position of each epoch, from the seed only."""

import hashlib
import re
from collections.abc import Sequence

import numpy as np
import torch

from tetravit.data.permutation import Permutation


class Order:
    """The image at position k of epoch e.

    wide: whether each image is wider than high; None: ignored. group: size of groups of one orientation: the images
    at the same place of the `group` equal parts of every `micro` positions, so that ranks, which take every n-th
    position, get whole groups. If the number of images of an orientation is not divisible, the last group is mixed.
    weights: (size,) sampling weights, drawn independently for every position; None: each image once per epoch.
    shuffle: "full": a keyed permutation, computed position by position; "shards(N)": a permutation of the shards, and
    of the images of each N consecutive shards; "table": a permutation drawn once per epoch, as in older runs. Groups
    and weights always use a table. shards: number of images of each shard, in order; None: no shards.

    Raises:
        ValueError: for an unknown `shuffle`, or "shards(N)" without shards.
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
        shuffle: str = "table",
        shards: Sequence[int] | None = None,
    ) -> None:
        window = parse_shuffle(shuffle)
        if window and (shards is None or sum(shards) != size):
            raise ValueError(f"data.shuffle={shuffle} needs a set of shards; use data.shuffle=full.")
        grouped = weights is not None or (wide is not None and group > 1)
        self._keyed = shuffle != "table" and not grouped
        self._shards = np.array(shards, dtype=np.int64) if window and not grouped else None
        self._window = window
        self.size = size
        self.repeats = repeats
        self.seed = seed
        self.wide, self.group, self.micro = wide, group, micro
        self._shares = None if weights is None else np.cumsum(weights, dtype=np.float64)
        self._epoch = -1
        self._permutation = np.empty(0, dtype=np.int64)
        self._places: Permutation | _ShardPlaces | None = None

    def image(self, epoch: int, position: int, shift: int = 0) -> int:
        """Index of the image; `shift` > 0: of the image that many positions later."""
        place = (position // self.repeats + shift) % self.size
        if self._keyed:
            if epoch != self._epoch or self._places is None:
                self._places, self._epoch = self._keyed_places(epoch), epoch
            return self._places(place)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(mixed_seed(self.seed, epoch, -1))
            self._permutation, self._epoch = self._drawn(generator), epoch
        return int(self._permutation[place])

    def _keyed_places(self, epoch: int) -> "Permutation | _ShardPlaces":
        if self._shards is not None:
            return _ShardPlaces(self._shards, self._window, self.seed, epoch)
        return Permutation(self.size, mixed_seed(self.seed, epoch, -2))

    def _drawn(self, generator: torch.Generator) -> np.ndarray:
        """The images of an epoch, in order."""
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


class _ShardPlaces:
    """The image at a position, with the images of `window` shards at a time shuffled.

    shards: (S,) number of images per shard.
    """

    def __init__(self, shards: np.ndarray, window: int, seed: int, epoch: int) -> None:
        order = Permutation(len(shards), mixed_seed(seed, epoch, -3))
        self.drawn = np.array([order(i) for i in range(len(shards))], dtype=np.int64)
        self.first = np.cumsum(shards) - shards  # index of the first image of each shard
        self.ends = np.cumsum(shards[self.drawn])  # end position of each drawn shard
        self.window, self.seed, self.epoch = window, seed, epoch
        self._turn = -1
        self._inside = Permutation(1, 0)

    def __call__(self, place: int) -> int:
        turn = int(np.searchsorted(self.ends, place, side="right")) // self.window
        start = int(self.ends[turn * self.window - 1]) if turn else 0
        if turn != self._turn:
            end = int(self.ends[min((turn + 1) * self.window, len(self.ends)) - 1])
            self._inside = Permutation(end - start, mixed_seed(self.seed, self.epoch, -4, turn))
            self._turn = turn
        place = start + self._inside(place - start)
        shard = int(np.searchsorted(self.ends, place, side="right"))
        return int(self.first[self.drawn[shard]]) + place - (int(self.ends[shard - 1]) if shard else 0)


def parse_shuffle(text: str) -> int:
    """Number of shards shuffled together; 0: all images.

    Raises:
        ValueError: for an unknown text.
    """
    match = re.fullmatch(r"shards\((\d+)\)", text)
    if match and int(match[1]):
        return int(match[1])
    if text not in ("full", "table"):
        raise ValueError(f"data.shuffle is full, shards(N) with N from 1 up, or table; got {text!r}.")
    return 0


def balancing(classes: np.ndarray, balance: float) -> np.ndarray:
    """Sampling weight of each image (N,): the number of images of its class to the power -balance."""
    counts = np.bincount(classes)
    weights: np.ndarray = counts[classes].astype(np.float64) ** -balance
    return weights


def mixed_seed(*numbers: int) -> int:
    """A well-mixed 63-bit seed from several integers."""
    text = "/".join(map(str, numbers)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1
