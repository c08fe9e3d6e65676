"""The usual winner loses its place to a clear and repeated lead alone; a clock of its own, no waiting."""

import pytest

from tetravit.runtimes.parts import compare as compare_
from tetravit.runtimes.parts.compare import compare


class Machine:
    """A clock that ways move on by their times, one list per way; the last time of a list repeats."""

    def __init__(self, **times):
        self.now, self.times, self.called = 0.0, {k: list(v) for k, v in times.items()}, []

    def compare(self, usual, **options):
        calls = {name: lambda name=name: self.call(name) for name in self.times}
        return compare(calls, usual, clock=lambda: self.now, wait=lambda _: None, **options)

    def call(self, name):
        self.called.append(name)
        times = self.times[name]
        self.now += times.pop(0) if len(times) > 1 else times[0]


def test_a_clear_and_repeated_lead_takes_the_place():
    found = Machine(usual=[0.1], other=[0.05]).compare("usual")
    assert found.best == "other"
    assert found.seconds == pytest.approx({"usual": 0.1, "other": 0.05})
    assert found.ratios == pytest.approx({"usual": 1.0, "other": 2.0})


def test_a_small_lead_does_not():
    assert Machine(usual=[0.1], other=[0.095]).compare("usual").best == "usual"


def test_one_noisy_round_does_not_decide():
    """The usual winner is disturbed in its first rounds: what it lost there is not repeated."""
    assert Machine(usual=[0.9, 0.9, 0.1], other=[0.11]).compare("usual").best == "usual"


def test_a_slow_moment_is_slow_for_all():
    """Twice as slow from the third round on: ratios within rounds stay."""
    machine = Machine(usual=[0.1, 0.1, 0.2], other=[0.08, 0.08, 0.16])
    assert machine.compare("usual").best == "other"


def test_an_unsteady_lead_is_no_lead():
    """Faster in the median, slower in more than a quarter of the rounds."""
    other = [0.05, 0.2, 0.05, 0.2, 0.05, 0.05, 0.2, 0.05, 0.05, 0.2, 0.05, 0.05]
    assert Machine(usual=[0.1], other=other).compare("usual").best == "usual"


def test_of_several_leads_the_largest_counts():
    assert Machine(usual=[0.1], a=[0.08], b=[0.06], c=[0.2]).compare("usual").best == "b"


def test_a_hopeless_way_is_called_no_more():
    machine = Machine(usual=[0.01], slow=[0.1], near=[0.0105])
    found = machine.compare("usual")
    assert (found.best, machine.called.count("slow")) == ("usual", compare_.EARLY)
    assert machine.called.count("near") >= compare_.FEWEST


def test_one_long_round_drops_a_hopeless_way():
    machine = Machine(usual=[0.5], slow=[0.9], near=[0.55])
    assert machine.compare("usual").best == "usual"
    assert machine.called.count("slow") == 1
    assert machine.called.count("near") == compare_.FEWEST


def test_no_way_always_follows_the_same_one():
    machine = Machine(a=[0.1], b=[0.1])
    machine.compare("a")
    assert machine.called[:4] == ["a", "b", "b", "a"]


def test_rounds_end_when_they_agree_or_time_is_up():
    agreed = Machine(usual=[0.1], other=[0.05])
    agreed.compare("usual")
    assert len(agreed.called) == 2 * compare_.FEWEST
    torn = Machine(usual=[0.001], other=[0.0009, 0.0012] * 20)
    torn.compare("usual")
    assert len(torn.called) == 2 * compare_.MOST
    slow = Machine(usual=[1.0], other=[0.9, 1.1] * 20)
    slow.compare("usual")
    assert len(slow.called) == 2 * compare_.FEWEST


def test_a_single_way_is_measured_briefly():
    machine = Machine(usual=[0.1])
    found = machine.compare("usual")
    assert (found.best, found.seconds["usual"]) == ("usual", pytest.approx(0.1))
    assert len(machine.called) == compare_.EARLY
