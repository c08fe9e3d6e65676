"""The fastest of several ways of running a model, on a machine where other work runs too.

Each way is called once per round, in turns, so that a slow moment is slow for all. Ways are compared by the ratio of
their times within a round, and the median of these ratios decides. One way is the usual winner: only a way that is
clearly faster in most of the rounds takes its place.
"""

import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

LEAD = 1.07  # ratio to the usual winner that is a clear lead
REPEATED = 0.75  # share of the rounds that must show a lead
FEWEST, MOST = 4, 12  # rounds
SECONDS = 2.0  # after which no further round starts, except up to `FEWEST`
HOPELESS, EARLY = 1.3, 2  # a way that is so many times as slow in each of the first rounds is dropped
LONG_S = 1.0  # a first round that takes longer is enough to drop such a way
SETTLE_S = 0.003  # before each call, while threads of the previous way may still spin

Name = TypeVar("Name", bound=Hashable)
Call = Callable[[], object]


@dataclass(frozen=True)
class Compared(Generic[Name]):
    """best: the fastest way. seconds: median time of a call of each way. ratios: its lead over the usual winner."""

    best: Name
    seconds: Mapping[Name, float] = field(default_factory=dict)
    ratios: Mapping[Name, float] = field(default_factory=dict)


def compare(
    calls: Mapping[Name, Call],
    usual: Name,
    *,
    clock: Callable[[], float] = time.perf_counter,
    wait: Callable[[float], object] = time.sleep,
) -> Compared[Name]:
    """Time the ways in turns, and pick one.

    Args:
        calls: the ways, all called before; a call returns when its work is done.
        usual: the way that is kept unless another leads clearly and repeatedly.
    """
    taken: dict[Name, list[float]] = {name: [] for name in calls}
    inside = list(calls)
    start, early = clock(), EARLY
    for count in range(MOST):
        if count >= FEWEST and (clock() - start > SECONDS or _settled(taken, inside, usual)):
            break
        if len(inside) == 1 and count >= early:
            break
        first = count % len(inside)
        for name in (*inside[first:], *inside[:first]):  # none always follows the same one
            wait(SETTLE_S)
            before = clock()
            calls[name]()
            taken[name].append(clock() - before)
        if count == 0 and clock() - start > LONG_S:
            early = 1
        if count + 1 == early:
            inside = [name for name in inside if name == usual or not _hopeless(taken, name, usual)]
    leads = {name: _ratios(taken, name, usual) for name in calls}
    able = [name for name in inside if name == usual or _leads(leads[name])]
    best = max(able, key=lambda name: statistics.median(leads[name]))
    return Compared(
        best,
        {name: statistics.median(times) for name, times in taken.items()},
        {name: statistics.median(ratios) for name, ratios in leads.items()},
    )


def _ratios(taken: Mapping[Name, Sequence[float]], name: Name, usual: Name) -> list[float]:
    """The time of the usual winner over that of a way, in each round."""
    return [theirs / own for own, theirs in zip(taken[name], taken[usual], strict=False)]


def _leads(ratios: Sequence[float]) -> bool:
    """Whether these ratios are a clear and repeated lead."""
    often = sum(ratio > 1 for ratio in ratios) >= REPEATED * len(ratios)
    return len(ratios) >= FEWEST and often and statistics.median(ratios) >= LEAD


def _hopeless(taken: Mapping[Name, Sequence[float]], name: Name, usual: Name) -> bool:
    return all(ratio * HOPELESS < 1 for ratio in _ratios(taken, name, usual))


def _settled(taken: Mapping[Name, Sequence[float]], inside: Sequence[Name], usual: Name) -> bool:
    """Whether all rounds so far agree, for each way, whether it leads."""
    for name in inside:
        ratios = _ratios(taken, name, usual)
        if name != usual and not (min(ratios) >= LEAD or max(ratios) < LEAD):
            return False
    return True
