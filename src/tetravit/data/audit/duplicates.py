"""Images that are there twice: the same bytes, or nearly the same picture."""

from collections.abc import Iterator, Sequence

import numpy as np

NEAR = 3  # bits of 64 that near duplicates may differ in
TINT = 12  # of 255: mean difference of their 4 x 4 colours at most
BLOCKS = 4  # of 16 bits: two hashes that differ in at most 3 bits agree in one of 4 blocks
CROWD = 64  # images of equal block that are compared with each other; of more, each with the next ones


ONES = np.array([bin(i).count("1") for i in range(256)], dtype=np.uint8)


def exact(hashes: Sequence[str]) -> Iterator[list[int]]:
    """Groups of positions with the same hash, two or more each, in the order of their first."""
    groups: dict[str, list[int]] = {}
    for i, value in enumerate(hashes):
        groups.setdefault(value, []).append(i)
    return (group for group in groups.values() if len(group) > 1)


def near(looks: np.ndarray, tints: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of positions of near duplicates, sorted.

    looks: (N,) uint64 perceptual hashes. tints: (N, 48) uint8 mean colours.
    """
    pairs: list[np.ndarray] = []
    for block in range(BLOCKS):
        keys = (looks >> np.uint64(16 * block)) & np.uint64(0xFFFF)
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        for step in range(1, CROWD):
            same = keys[step:] == keys[:-step]
            if not same.any():
                break
            a, b = order[:-step][same], order[step:][same]
            close = _bits(looks[a] ^ looks[b]) <= NEAR
            a, b = a[close], b[close]
            colour = np.abs(tints[a].astype(np.int16) - tints[b]).mean(axis=1) <= TINT
            pairs.append(np.stack((np.minimum(a, b), np.maximum(a, b)), axis=1)[colour])
    if not pairs:
        return []
    return [(int(a), int(b)) for a, b in np.unique(np.concatenate(pairs), axis=0)]


def _bits(values: np.ndarray) -> np.ndarray:
    """How many bits are set in each of (N,) uint64."""
    return np.asarray(ONES[np.ascontiguousarray(values).view(np.uint8).reshape(-1, 8)].sum(axis=1))
