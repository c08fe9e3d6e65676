"""Contenders in turns: one that dies costs no other its figures."""

import multiprocessing
import threading
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from tetravit.benchmark import against
from tetravit.benchmark.against import contest
from tetravit.benchmark.contenders import Ready, Round

DEAD = "the process ended without an error message (out of memory?)"


@pytest.fixture
def contender(monkeypatch):
    """`contender(turns)`: the one called "plain" leaves after so many turns; no processes, no waiting."""
    monkeypatch.setattr(against, "_yardsticks", lambda *_: [(1.0, lambda: None)] * 2)
    monkeypatch.setattr(against, "_median_time", lambda *_: 1.0)
    monkeypatch.setattr(against, "joules", lambda _: None)
    monkeypatch.setattr(against, "count", lambda *_, **__: SimpleNamespace(inference_macs=1))

    def set_up(turns):
        @contextmanager
        def process(task):
            ours, theirs = multiprocessing.Pipe()

            def serve():
                theirs.send(Ready(1.0, 200.0, 3.0))
                done = 0
                while not (task.contender == "plain" and done == turns) and theirs.recv() is not None:
                    theirs.send(Round([0.5], 0.3, "eager, 2 threads"))
                    done += 1
                theirs.close()

            thread = threading.Thread(target=serve, daemon=True)
            thread.start()
            if task.contender == "plain" and turns == 0:
                thread.join()
            yield ours
            thread.join()

        monkeypatch.setattr(against, "_process", process)

    return set_up


@pytest.mark.parametrize("turns", [0, 1, 3])
def test_a_contender_that_leaves_between_its_turns_is_told(contender, turns):
    contender(turns)
    gone, other = contest(["xcit_nano_12_p16"], ["plain", "timm"], sizes=[32], batch=2, rounds=3)
    assert (other.failed, other.images_per_s) == ("", 4.0)
    assert (other.peak_mib, other.process_mib, other.build_s) == (1.0, 200.0, 3.0)
    assert (other.others, other.how) == (0.3, "eager, 2 threads")
    if turns == 3:  # after its last turn it has all its figures
        assert (gone.failed, gone.images_per_s) == ("", 4.0)
    else:
        assert (gone.failed, gone.images_per_s, gone.peak_mib) == (DEAD, None, None)


@pytest.mark.slow  # two processes
def test_a_contender_that_is_killed_between_its_turns_is_told():
    before = set(multiprocessing.active_children())

    def kill(_):
        for process in sorted(set(multiprocessing.active_children()) - before, key=lambda p: p.pid)[:1]:
            if not killed:
                process.kill()
                process.join()
                killed.append(process.pid)

    killed = []
    rows = contest(
        ["xcit_nano_12_p16"], ["plain"] * 2, sizes=[32], batch=1, rounds=2, seconds=0.01, on_round=kill
    )
    assert killed
    assert sorted(row.failed for row in rows) == ["", DEAD]
    assert [row.images_per_s is None for row in rows] == [bool(row.failed) for row in rows]
