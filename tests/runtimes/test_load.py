"""How busy others keep this machine, from counters that a test sets."""

import pytest

from tetravit.runtimes.parts import load
from tetravit.runtimes.parts.load import Load, Times, free_threads


@pytest.fixture(autouse=True)
def two_cores(monkeypatch):
    monkeypatch.setattr(load, "cores", lambda: frozenset((0, 1)))


def readings(*values):
    left = [None if value is None else Times(*value) for value in values]
    return lambda: left.pop(0) if len(left) > 1 else left[0]


def test_own_work_is_not_that_of_others():
    found = Load(readings((0, 100, 50), (10, 116, 60), (12, 120, 64)))
    assert found.others() == pytest.approx(0.6)
    assert found.others() == 0.0


def test_too_short_a_moment_says_nothing_new():
    found = Load(readings((0, 0, 0), (1, 1, 0), (1.01, 9, 0)))
    assert found.others() == 1.0
    assert found.others() == 1.0


def test_no_more_than_all_cores():
    assert Load(readings((0, 0, 0), (1, 7, 0))).others() == 2.0


def test_without_counters_the_average_counts():
    assert Load(readings(None), average=lambda: 2.5).others() == 1.5
    assert Load(readings(None), average=lambda: 0.2).others() == 0.0


def test_the_counters_of_this_system():
    first, second = load.times(), load.times()
    if first is not None:
        assert second.busy >= first.busy >= 0


@pytest.mark.parametrize(
    ("threads", "others", "free"),
    [(2, 0.0, 2), (2, 0.4, 2), (2, 1.0, 1), (2, 2.0, 1), (1, 0.0, 1), (8, 0.0, 2)],
)
def test_threads_that_have_a_core_of_their_own(threads, others, free):
    assert free_threads(threads, others) == free
