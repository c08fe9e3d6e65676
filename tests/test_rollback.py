"""A loss that is not finite sends a run back to its checkpoint, at most three times."""

import json

import pytest
import torch
from tests.test_dino_runs import RECIPE, STEPS, outcome

from tetravit.engine.guard import NotFinite
from tetravit.recipe import loads
from tetravit.runs import train
from tetravit.runs.rollback import Attempts, log_event, logged_attempts
from tetravit.tasks.dino import Dino

pytestmark = pytest.mark.slow  # whole runs and other processes


def run(folder, *overrides, **options):
    train(loads(RECIPE, ["run.on_nan=rollback", *overrides]), folder, reporters=[], **options)
    return folder


@pytest.fixture
def spoil(monkeypatch):
    """Make the loss of one step NaN, so many times."""

    def of(step, times):
        left, usual = [times], Dino.step

        def spoilt(self, batch, progress):
            values = usual(self, batch, progress)
            if progress.step == step and left[0]:
                left[0] -= 1
                values["loss"] = values["loss"] * float("nan")
            return values

        monkeypatch.setattr(Dino, "step", spoilt)

    return of


def test_a_run_goes_on_from_its_checkpoint_on_another_draw(tmp_path, spoil):
    plain = outcome(run(tmp_path / "plain"))[0]
    spoil(3, 1)
    folder = run(tmp_path / "run", "run.save_steps=2", "run.rollback_steps=1")
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert [(e["step"], e["what"], e["checkpoint"], e["attempt"]) for e in events] == [(3, "loss", 2, 1)]
    assert len(events[0]["images"]) == 8
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps if line["event"] == "step"] == [2, 4, 6]
    state = outcome(folder)[0]
    assert all(value.isfinite().all() for value in state.values())
    assert not torch.equal(state["model/center"], plain["model/center"])
    kept = json.loads(next((folder / "checkpoints").glob("step_000006/*.json")).read_text())
    assert "attempts" in json.dumps(kept)


def test_a_run_without_a_fault_is_unchanged(tmp_path):
    usual = tmp_path / "usual"
    train(loads(RECIPE), usual, reporters=[])
    one, two = outcome(usual)[0], outcome(run(tmp_path / "rollback"))[0]
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not (tmp_path / "rollback" / "events.jsonl").exists()
    assert STEPS == 6


def test_three_attempts_and_no_more(tmp_path, spoil):
    spoil(3, 9)
    with pytest.raises(NotFinite) as error:
        run(tmp_path / "run")
    assert "Three attempts from checkpoints did not help. Try, in this order:" in str(error.value)
    events = (tmp_path / "run" / "events.jsonl").read_text().splitlines()
    assert [json.loads(line)["attempt"] for line in events] == [1, 2, 3, None]


class Killed(BaseException):
    """The end of a process: nothing handles it, and nothing more is written."""


@pytest.fixture
def kill(monkeypatch):
    """End the run in front of a step, the so manieth time that it is reached."""

    def of(step, time):
        usual, left = Dino.step, [time]

        def ended(self, batch, progress):
            if progress.step == step:
                left[0] -= 1
                if left[0] == 0:
                    raise Killed
            return usual(self, batch, progress)

        monkeypatch.setattr(Dino, "step", ended)

    return of


def test_a_kill_inside_an_attempt_changes_nothing(tmp_path, spoil, kill):
    options = ["run.save_steps=2", "run.rollback_steps=2"]
    spoil(3, 1)
    wanted = outcome(run(tmp_path / "whole", *options))
    spoil(3, 1)
    kill(3, 2)  # in attempt 1, before its first checkpoint
    folder = tmp_path / "run"
    with pytest.raises(Killed):
        run(folder, *options)
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step_000002"]
    train(None, resume=folder, reporters=[])
    state, log = outcome(folder)
    assert log == wanted[1]
    assert all(torch.equal(state[name], value) for name, value in wanted[0].items())
    events = [(path / "events.jsonl").read_text() for path in (folder, tmp_path / "whole")]
    assert events[0] == events[1]


def test_attempts_are_counted_over_kills(tmp_path, spoil, kill):
    spoil(3, 9)
    kill(3, 3)  # in attempt 2
    folder = tmp_path / "run"
    with pytest.raises(Killed):
        run(folder)
    with pytest.raises(NotFinite, match="Three attempts from checkpoints did not help"):
        train(None, resume=folder, reporters=[])
    events = (folder / "events.jsonl").read_text().splitlines()
    assert [json.loads(line)["attempt"] for line in events] == [1, 2, 3, None]


def test_seeds_and_rates_are_functions_of_the_step_and_the_attempts():
    attempts = Attempts(5)
    attempts.add(10, 12, 3, 100)
    attempts.add(10, 14, 3, 100)
    assert [attempts.at(step) for step in (9, 10, 15, 17, 18)] == [0, 2, 2, 2, 0]
    assert attempts.rate(lambda step: 8.0)(10) == 2.0
    assert attempts.seed_at(9) == 5
    again = Attempts(5, attempts.rows())
    assert again.seed_at(12) == attempts.seed_at(12) != 5


def test_events_are_written_once(tmp_path):
    rows = [{"number": 1, "start": 2, "bad": 3, "until": 9}]
    assert logged_attempts(tmp_path) == []
    for _ in range(2):
        log_event(tmp_path, event="rollback", step=3, what="loss", checkpoint=2, attempt=1, until=9)
        log_event(tmp_path, event="collapse", step=4, text="It has collapsed.")
    assert len((tmp_path / "events.jsonl").read_text().splitlines()) == 2
    assert logged_attempts(tmp_path) == rows
