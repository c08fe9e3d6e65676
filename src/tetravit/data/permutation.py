"""A permutation without a table: each element is computed from a key."""

from math import isqrt

ROUNDS = 6
MASK = (1 << 64) - 1


class Permutation:
    """A permutation of 0 .. size - 1 determined by `key`; 64 bits of memory for any size.

    A Feistel network over pairs (a, b), a, b < side, where side is the smallest integer with side ** 2 >= size;
    results of `size` or above are permuted again (cycle walking), which is rare for large sizes.

    Source: Black and Rogaway, Ciphers with Arbitrary Finite Domains, CT-RSA 2002.
    """

    def __init__(self, size: int, key: int) -> None:
        self.size = size
        self.side = isqrt(size - 1) + 1 if size > 1 else 1
        self.keys = tuple(_mixed(key * ROUNDS + i + 1) for i in range(ROUNDS))

    def __call__(self, place: int) -> int:
        """The element at a position."""
        if not 0 <= place < self.size:
            raise IndexError(place)
        side = self.side
        while True:
            a, b = divmod(place, side)
            for key in self.keys:
                a, b = b, (a + _mixed(b ^ key)) % side
            place = a * side + b
            if place < self.size:
                return place


def _mixed(x: int) -> int:
    """A 64-bit mixing function (splitmix64, Steele et al. 2014)."""
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)
