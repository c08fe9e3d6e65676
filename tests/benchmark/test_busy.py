"""Busy cores: their processes run inside the block alone, rows say so, and share no table with others."""

import os
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
from tests.benchmark.rows import ROW

from tetravit.benchmark import against
from tetravit.benchmark.busy import busy
from tetravit.benchmark.summary import summary
from tetravit.benchmark.table import contest_caption, contest_cells, contest_markdown

BUSY = replace(ROW, busy=1, others=1.02)


def runs(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_they_run_inside_the_block_alone():
    with busy(2) as processes:
        assert len(set(processes)) == 2
        assert all(map(runs, processes))
    assert not any(map(runs, processes))


def test_they_end_where_the_block_fails():
    block = busy(1)
    started = block.__enter__()
    with pytest.raises(RuntimeError, match="failed"):
        block.gen.throw(RuntimeError("failed"))
    assert not any(map(runs, started))


def test_contenders_are_built_and_measured_beside_them(monkeypatch):
    inside = []

    @contextmanager
    def keep(count):
        inside.append(count)
        yield []
        inside.append(None)

    def one(tasks, rounds, seconds, busy, on_round):
        assert inside == [1]
        return [replace(BUSY, busy=busy)]

    monkeypatch.setattr(against, "keep_busy", keep)
    monkeypatch.setattr(against, "_one", one)
    (row,) = against.contest(["deit_tiny"], ["plain"], busy=1)
    assert (row.busy, inside) == (1, [1, None])
    with pytest.raises(ValueError, match=r"^busy is 0 or more; got -1\.$"):
        against.contest(["deit_tiny"], ["plain"], busy=-1)


def test_captions_say_what_ran_beside():
    assert "busy" not in contest_caption([ROW])
    assert contest_caption([BUSY]).endswith(", copies 9 GB/s; 1 core kept busy meanwhile")
    disturbed = replace(ROW, others=0.6)
    assert contest_caption([ROW, disturbed]).endswith("; other work used up to 0.6 cores")
    with pytest.raises(ValueError, match=r"^Rows of different machines or settings share no table\.$"):
        contest_markdown([ROW, BUSY])


def test_summaries_keep_them_apart():
    kind = {"mode": "predict", "dtype": "float32", "batch": 8, "size": 224}
    rows = [ROW, replace(BUSY, images_per_s=5.0)]
    assert "| deit_tiny | 10 |" in summary([*rows, replace(ROW, contender="plain")], **kind)
    rows.append(replace(BUSY, contender="plain"))
    text = summary(rows, **kind, busy=1)
    assert "| deit_tiny | 5 |" in text
    assert text.endswith("; 1 core kept busy meanwhile.")
    with pytest.raises(
        ValueError, match=r"^No row has predict, float32, batch 8, 224 px, 2 cores kept busy\.$"
    ):
        summary(rows, **kind, busy=2)


def test_what_optimized_ran_is_in_its_cell():
    row = replace(ROW, contender="optimized", how="openvino, 2 threads, 2 parts")
    assert contest_cells(row, [row])[1] == "optimized (openvino, 2 threads, 2 parts)"
    assert contest_cells(replace(ROW, how="eager, 2 threads"), [ROW])[1] == "timm"


def test_programs_are_built_by_another_process_before(monkeypatch):
    order = []

    class Process:
        def __init__(self, task):
            order.append(("start", task.contender))

        def __enter__(self):
            return "line"

        def __exit__(self, *_):
            pass

    def reply(line, seconds=None):
        order.append("ready")
        return "failed"

    monkeypatch.setattr(against, "_yardsticks", lambda *_: [(1.0, lambda: None)] * 2)
    monkeypatch.setattr(against, "_median_time", lambda *_: 1.0)
    monkeypatch.setattr(against, "count", lambda *_, **__: SimpleNamespace(inference_macs=1))
    monkeypatch.setattr(against, "_process", Process)
    monkeypatch.setattr(against, "_reply", reply)
    monkeypatch.setattr(against, "_build", lambda task: order.append(("build", task.contender)))
    monkeypatch.setenv("TETRAVIT_PROGRAMS_GB", "1")
    against.contest(["deit_tiny"], ["plain", "optimized"], rounds=1)
    assert order == [("start", "plain"), "ready", ("build", "optimized"), ("start", "optimized"), "ready"]
