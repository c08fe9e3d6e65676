"""The choice is compared again when calls become slower or faster or the load changes, ever less often in vain."""

import pytest

from tetravit.runtimes.parts.watch import CALLS, EVERY_S, LONGEST_S, WAIT_S, Watch


class Clock:
    now, others = 0.0, 0.0

    def watch(self):
        return Watch(lambda: self.others, 0.0, clock=lambda: self.now)


@pytest.fixture
def clock():
    return Clock()


def calls(watch, seconds, count=CALLS, shape="a"):
    return [watch.record(shape, seconds) for _ in range(count)]


def test_calls_as_fast_as_measured_change_nothing(clock):
    watch = clock.watch()
    watch.expect("a", 0.1)
    clock.now = 10 * WAIT_S
    assert not any(calls(watch, 0.13, 100))


def test_slower_calls_are_noticed_after_a_while(clock):
    watch = clock.watch()
    watch.expect("a", 0.1)
    assert not any(calls(watch, 0.2, 10))  # too early
    clock.now = WAIT_S
    assert watch.record("a", 0.2)


def test_so_are_faster_ones(clock):
    """What was measured in a slow moment does not decide for ever."""
    watch = clock.watch()
    watch.expect("a", 0.1)
    clock.now = WAIT_S
    assert any(calls(watch, 0.05))


def test_a_single_slow_call_is_none(clock):
    watch = clock.watch()
    watch.expect("a", 0.1)
    clock.now = WAIT_S
    assert not any([*calls(watch, 0.1), *calls(watch, 9.0, 2), *calls(watch, 0.1)])


def test_another_shape_has_its_own_times(clock):
    watch = clock.watch()
    watch.expect("a", 0.1)
    clock.now = WAIT_S
    assert not any([*calls(watch, 0.9, 1, "b"), *calls(watch, 0.8, 20, "b")])
    assert any(calls(watch, 1.2, 5, "b"))


def test_another_load_is_noticed_when_it_lasts(clock):
    watch = clock.watch()
    watch.expect("a", 0.1)
    clock.now, clock.others = WAIT_S, 1.0
    assert not watch.record("a", 0.1)  # once
    clock.now, clock.others = WAIT_S + EVERY_S, 0.0
    assert not watch.record("a", 0.1)
    for count in (1, 2):
        clock.now, clock.others = WAIT_S + (1 + count) * EVERY_S, 1.0
        assert watch.record("a", 0.1) == (count == 2)


def test_comparisons_in_vain_become_rare(clock):
    watch, gaps = clock.watch(), []
    for _ in range(12):
        before = clock.now
        watch.expect("a", 0.1)
        while not watch.record("a", 0.2):
            clock.now += 1.0
        gaps.append(clock.now - before)
        watch.restart(changed=False, others=0.0)
    assert gaps[:3] == [WAIT_S, 2 * WAIT_S, 4 * WAIT_S]
    assert gaps[-1] == LONGEST_S
    watch.restart(changed=True, others=0.0)
    watch.expect("a", 0.1)
    clock.now += WAIT_S
    assert any(calls(watch, 0.2))
