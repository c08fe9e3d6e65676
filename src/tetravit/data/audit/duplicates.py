"""Duplicate images: identical bytes, or nearly identical pictures."""

from collections.abc import Iterator, Sequence

import numpy as np

NEAR = 3  # maximum Hamming distance of 64-bit hashes of near duplicates
TINT = 12  # maximum mean difference of their 4 x 4 colours, of 255
BLOCKS = 4  # 16 bits each: hashes at distance 3 or less agree in at least one block
CROWD = 64  # largest set with an equal block in which all pairs are compared; in a larger one, near neighbours only


ONES = np.array([bin(i).count("1") for i in range(256)], dtype=np.uint8)


def exact(hashes: Sequence[str]) -> Iterator[list[int]]:
    """Groups of positions with equal hashes, two or more each, ordered by first position."""
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
    """Number of set bits of each of (N,) uint64."""
    return np.asarray(ONES[np.ascontiguousarray(values).view(np.uint8).reshape(-1, 8)].sum(axis=1))
