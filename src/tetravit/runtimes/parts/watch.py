"""When a choice of backend is compared again: calls clearly slower or faster than measured, or another load."""

import statistics
import time
from collections import deque
from collections.abc import Callable, Hashable

APART = 1.4  # ratio, or its inverse, of the median of the last `CALLS` times to the expected time
CALLS = 5
LEARNED = 3  # first calls of a shape; the fastest of them is its expected time
CHANGED = 0.75  # cores that other processes use more, or fewer, than at the choice, twice in a row
EVERY_S = 2.0  # between two readings of the load
WAIT_S, LONGEST_S = (
    30.0,
    3600.0,
)  # before the next comparison; doubled by each comparison that changed nothing


class Watch:
    """Times of calls, against the expected time of their shape.

    others: how many cores other processes use now. at_choice: how many they used when the choice was made.
    """

    def __init__(
        self,
        others: Callable[[], float],
        at_choice: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._others, self._at_choice, self._clock = others, at_choice, clock
        self._wait, self._next, self._next_load = WAIT_S, clock() + WAIT_S, clock() + EVERY_S
        self._away = 0
        self._expected: dict[Hashable, float] = {}
        self._first: dict[Hashable, list[float]] = {}
        self._last: dict[Hashable, deque[float]] = {}

    def expect(self, shape: Hashable, seconds: float) -> None:
        """Set the expected time of a call with images of this shape."""
        self._expected[shape] = seconds
        self._last[shape] = deque(maxlen=CALLS)

    def record(self, shape: Hashable, seconds: float) -> bool:
        """Record the time of a call; returns whether the candidates should be compared again."""
        if shape not in self._expected:
            first = self._first.setdefault(shape, [])
            first.append(seconds)
            if len(first) == LEARNED:
                self.expect(shape, min(self._first.pop(shape)))
            return False
        last = self._last[shape]
        last.append(seconds)
        ratio = statistics.median(last) / self._expected[shape] if len(last) == CALLS else 1.0
        apart = not 1 / APART <= ratio <= APART
        return (self._load_changed() or apart) and self._clock() >= self._next

    def restart(self, changed: bool, others: float) -> None:
        """Begin anew after a comparison.

        All expected times are forgotten: set that of the compared shape by `expect`; those of other shapes are
        learned from their next calls.

        Args:
            changed: whether the comparison changed the choice.
            others: cores that other processes used during the comparison.
        """
        self._wait = WAIT_S if changed else min(LONGEST_S, 2 * self._wait)
        self._next, self._at_choice, self._away = self._clock() + self._wait, others, 0
        for table in (self._expected, self._first, self._last):
            table.clear()

    def _load_changed(self) -> bool:
        now = self._clock()
        if now >= self._next_load:
            self._next_load = now + EVERY_S
            away = abs(self._others() - self._at_choice) >= CHANGED
            self._away = self._away + 1 if away else 0
        return self._away >= 2
