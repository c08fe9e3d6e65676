"""The thread of a model: what runs together, in which order, and what a failure leaves."""

import threading
import time

import pytest

from tetravit.serve.batcher import Batcher, Job


@pytest.fixture
def batcher():
    found = Batcher("toy", wait_s=0.2)
    yield found
    found.close()
    if found.ident:
        found.join(5)


def jobs(calls, items, key="a", most=4):
    def run(batch):
        calls.append((threading.current_thread().name, list(batch)))
        return [2 * item for item in batch]

    return [Job(key, item, run, most) for item in items]


def test_jobs_of_a_key_share_calls_in_their_order(batcher):
    calls = []
    first, others = jobs(calls, range(6)), jobs(calls, "xy", key="b")
    futures = [batcher.submit(job) for job in (first[0], others[0], *first[1:], others[1])]
    batcher.start()
    assert [f.result(5) for f in futures] == [0, "xx", 2, 4, 6, 8, 10, "yy"]
    assert [items for _, items in calls] == [[0, 1, 2, 3], ["x", "y"], [4, 5]]
    assert {name for name, _ in calls} == {"model toy"}


def test_a_call_waits_for_what_is_announced_and_for_nothing_else(batcher):
    calls = []
    batcher.start()
    one, two, three = jobs(calls, [1, 2, 3])
    start = time.monotonic()
    assert batcher.submit(one).result(5) == 2
    assert time.monotonic() - start < 0.15  # nobody is coming: no wait
    with batcher.coming():
        waits = batcher.submit(two)
        time.sleep(0.02)
        batcher.submit(three)
    assert waits.result(5) == 4
    assert [items for _, items in calls] == [[1], [2, 3]]


def test_the_wait_ends(batcher):
    calls = []
    batcher.start()
    (job,) = jobs(calls, [1])
    with batcher.coming():
        start = time.monotonic()
        assert batcher.submit(job).result(5) == 2
        assert 0.15 < time.monotonic() - start < 2


def test_a_failure_belongs_to_its_requests(batcher):
    calls = []

    def fail(batch):
        raise ZeroDivisionError("no")

    batcher.start()
    with pytest.raises(ZeroDivisionError):
        batcher.submit(Job("f", 1, fail)).result(5)
    assert batcher.submit(*jobs(calls, [3])).result(5) == 6


def test_cancelled_jobs_never_run(batcher):
    calls = []
    first, second = (batcher.submit(job) for job in jobs(calls, [1, 2]))
    assert first.cancel()
    batcher.start()
    assert second.result(5) == 4
    assert [items for _, items in calls] == [[2]]


def test_what_is_queued_is_finished_and_no_more_is_taken(batcher):
    calls = []
    futures = [batcher.submit(job) for job in jobs(calls, [1, 2, 3], most=1)]
    batcher.close()
    batcher.start()
    assert [f.result(5) for f in futures] == [2, 4, 6]
    with pytest.raises(RuntimeError, match=r"^the thread of the model is closed$"):
        batcher.submit(*jobs(calls, [4]))
    batcher.join(5)
    assert not batcher.is_alive()
