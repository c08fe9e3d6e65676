"""Trackers: what they receive, how a resumed run continues, and that their faults cost no step."""

import csv
import threading
import time

import pytest

from tetravit.engine.log import Plan, Reporters, Summary
from tetravit.trackers import check_trackers, report_pictures, trackers_of, tracking_reporters
from tetravit.trackers.base import RunInfo, Tracker, Tracking
from tetravit.trackers.csv import Csv

PLAN = Plan([("steps", "4")], total_steps=4, steps_per_epoch=2)
SUMMARY = Summary(4, None, None, 1.0)
PICTURE = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def record(step, **values):
    return {"step": step, "epoch": step / 2, **values, "timing": {"images_per_s": 9.0, "left_s": 1.0}}


class Notes(Tracker):
    def __init__(self, fails=None, hangs=None):
        self.calls, self.fails, self.hangs = [], fails, hangs
        self.released = threading.Event()

    def _call(self, name, *values):
        self.calls.append((name, *values))
        if name == self.fails:
            raise ConnectionError("no route\nto host")
        if name == self.hangs:
            self.released.wait(20)

    def open(self, run, identity):
        self._call("open", run.first_step, identity)
        return "id-1"

    def scalars(self, step, values):
        self._call("scalars", step, dict(values))

    def rewind(self, step):
        self._call("rewind", step)

    def picture(self, name, data):
        self._call("picture", name, data[:4])

    def artifact(self, path):
        self._call("artifact", path.name)

    def close(self):
        self._call("close")


def tracking(tracker, folder, notes, **options):
    return Tracking(
        "notes", tracker, RunInfo(folder, "abc"), notes.append, pictures=report_pictures, **options
    )


def test_a_tracker_receives_scalars_pictures_and_weights_in_order(tmp_path):
    (tmp_path / "report.html").write_text(f'<img alt="a" src="data:image/png;base64,{PICTURE}">')
    (tmp_path / "last.safetensors").write_bytes(b"")
    tracker, notes = Notes(), []
    reporter = tracking(tracker, tmp_path, notes)
    reporter.start(PLAN)
    reporter.step(record(1, loss=0.5, lr=0.1))
    reporter.evaluated({**record(2, top1=0.75), "weights": "raw"})
    reporter.stop()
    reporter.finish(SUMMARY)
    assert notes == []
    assert tracker.calls == [
        ("open", 0, None),
        ("scalars", 1, {"train/epoch": 0.5, "train/loss": 0.5, "train/lr": 0.1, "time/images_per_s": 9.0}),
        ("scalars", 2, {"val/epoch": 1.0, "val/top1": 0.75, "time/images_per_s": 9.0}),
        ("picture", "report/01", b"\x89PNG"),
        ("artifact", "report.html"),
        ("artifact", "last.safetensors"),
        ("close",),
    ]


def test_a_resumed_run_continues_under_its_identity(tmp_path):
    for expected in (None, "id-1"):
        tracker, notes = Notes(), []
        reporter = tracking(tracker, tmp_path, notes)
        reporter.start(Plan([], 4, 2, first_step=2))
        reporter.rewind(2)
        reporter.stop()
        assert tracker.calls == [("open", 2, expected), ("rewind", 2)]
    assert reporter.mark() == 2


@pytest.mark.parametrize("place", ["open", "scalars", "close"])
def test_a_tracker_that_raises_costs_one_warning(tmp_path, place):
    tracker, notes = Notes(fails=place), []
    reporter = tracking(tracker, tmp_path, notes)
    reporter.start(PLAN)
    for step in range(50):
        reporter.step(record(step))
        reporter.tick(step)
    reporter.stop()
    reporter.finish(SUMMARY)
    assert notes == ["notes failed and the run continues without it: ConnectionError: no route to host"]
    assert [name for name, *_ in tracker.calls].count(place) == 1


@pytest.mark.parametrize("place", ["open", "scalars", "close"])
def test_a_tracker_that_hangs_costs_one_warning_and_no_waiting(tmp_path, place):
    tracker, notes = Notes(hangs=place), []
    reporter = tracking(tracker, tmp_path, notes, silent_s=0.05)
    start = time.monotonic()
    reporter.start(PLAN)
    for step in range(20):
        reporter.step(record(step))
        reporter.tick(step)
    reporter.stop()
    reporter.finish(SUMMARY)
    assert time.monotonic() - start < 10
    assert notes == ["notes has not responded for 0 s; the run continues without it."]
    tracker.released.set()


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_metrics_csv_gains_columns_and_drops_what_came_after_the_step(tmp_path):
    table = Csv()
    table.open(RunInfo(tmp_path, "abc"), None)
    table.scalars(1, {"train/loss": 0.5})
    table.scalars(2, {"train/loss": 0.25})
    table.scalars(2, {"val/top1": 0.75})
    table.close()
    assert rows(tmp_path)[1:] == [
        {"step": "2", "train/loss": "0.25", "val/top1": ""},
        {"step": "2", "train/loss": "", "val/top1": "0.75"},
    ]
    table = Csv()
    table.open(RunInfo(tmp_path, "abc", first_step=1), "metrics.csv")
    table.scalars(2, {"train/loss": 0.125})
    table.close()
    assert rows(tmp_path) == [
        {"step": "1", "train/loss": "0.5", "val/top1": ""},
        {"step": "2", "train/loss": "0.125", "val/top1": ""},
    ]


def test_names_are_checked_before_a_run_starts(monkeypatch):
    assert check_trackers(["csv", "csv"]) == ("csv",)
    with pytest.raises(ValueError, match=r"^Unknown tracker 'tensorbord'. Did you mean 'tensorboard'\?$"):
        check_trackers(["tensorbord"])
    monkeypatch.setattr("tetravit.trackers.find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=r"^The tracker 'wandb' needs the extra: pip install 'tetravit\[wandb\]'.$"
    ):
        check_trackers(["wandb"])


def run_of(names, folder):
    """Two runs of two records each, the second one resumed at step 2 of 3; their warnings."""
    notes = []
    for first in (0, 2):
        run = RunInfo(folder, "abc123", {"optim": {"lr": 0.1}, "epochs": 2})
        members = Reporters(tracking_reporters(names, run, notes.append))
        members.start(Plan([("steps", "4")], 4, 2, first_step=first))
        if first:
            members.rewind(dict.fromkeys(("csv", *names), first))
        for step in range(first, first + 2):
            members.step(record(step + 1, loss=0.5 ** (step + 1)))
        members.stop()
        if first == 0:
            members.step(record(3, loss=7.0))  # after the last checkpoint
            members.stop()
    members.finish(SUMMARY)
    return notes


def test_tensorboard_shows_one_curve_of_a_resumed_run(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert run_of(["tensorboard"], tmp_path) == []
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [
        (1, 0.5),
        (2, 0.25),
        (3, 0.125),
        (4, 0.0625),
    ]
    assert set(trackers_of(tmp_path)) == {"csv", "tensorboard"}


@pytest.mark.slow
def test_wandb_offline_keeps_one_run(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    assert run_of(["wandb"], tmp_path) == []
    assert list((tmp_path / "wandb").glob("offline-run-*-abc123/run-abc123.wandb"))
    assert set(trackers_of(tmp_path)) == {"csv", "wandb"}


@pytest.mark.slow
def test_mlflow_continues_the_same_run(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    (tmp_path / "last.safetensors").write_bytes(b"weights")
    assert run_of(["mlflow"], tmp_path) == []
    from mlflow import MlflowClient

    client = MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("tetravit").experiment_id])
    assert (run.info.status, run.data.params["optim.lr"]) == ("FINISHED", "0.1")
    assert {m.step for m in client.get_metric_history(run.info.run_id, "train/loss")} == {1, 2, 3, 4}
    assert [f.path for f in client.list_artifacts(run.info.run_id)] == ["last.safetensors", "plan.txt"]
