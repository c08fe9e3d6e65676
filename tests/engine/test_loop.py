"""What the loop does between two steps, and when it must not take one."""

import functools
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from engine_toy import ToyLoader, ToyValidation, batch, toy_job
from task_toys import scored
from torch import nn

from tetravit.engine import loop
from tetravit.engine.guard import Guard, NotFinite
from tetravit.engine.log import Reporter, Reporters
from tetravit.engine.loop import RunState, fit
from tetravit.engine.signals import Interrupted
from tetravit.protocols.base import Scores


def weights(job):
    state = {**job.task.state_dict(), **{f"ema/{k}": v for k, v in job.ema.state().items()}}
    return {k: v.clone() for k, v in state.items()}


class Listener(Reporter):
    def __init__(self):
        self.records, self.scores, self.notes = [], [], []

    def step(self, record):
        self.records.append(record)

    def evaluated(self, record):
        self.scores.append(record)

    def note(self, text):
        self.notes.append(text)


def test_training_lowers_the_loss_and_raises_the_score():
    heard = Listener()
    fit(toy_job(None, steps=60, reporters=Reporters([heard])))
    assert heard.records[-1]["loss"] < 0.8 * heard.records[0]["loss"]
    assert heard.scores[-1]["top1"] > heard.scores[0]["top1"]
    assert {"top1", "top5", "loss", "ema_top1", "ema_top5", "ema_loss"} < heard.scores[-1].keys()
    assert [s["step"] for s in heard.scores] == list(range(5, 61, 5))
    assert [r["step"] for r in heard.records] == list(range(3, 61, 3))


def test_the_same_seed_is_the_same_run_and_another_is_not(tmp_path):
    runs = []
    for i, seed in enumerate((3, 3, 4)):
        job = toy_job(tmp_path / str(i), steps=12, seed=seed)
        fit(job)
        runs.append((weights(job), (tmp_path / str(i) / "metrics.jsonl").read_bytes()))
    assert all(torch.equal(v, runs[1][0][k]) for k, v in runs[0][0].items())
    assert runs[0][1] == runs[1][1]
    assert runs[0][1] != runs[2][1]  # dropout follows the seed


def test_accumulated_parts_give_the_step_of_the_whole_batch():
    """Without BatchNorm and dropout, which see the parts."""
    ends = []
    for accumulate in (1, 4):
        job = toy_job(None, steps=10, accumulate=accumulate, dropout=0.0)
        job.task.model.norm = nn.Identity()
        job.optimizer.param_groups[0]["params"] = list(job.task.parameters())
        del job.optimizer.param_groups[1:]
        job.ema = None
        fit(job)
        ends.append(job.task.state_dict())
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("precision", ["float32", "fp16"])
def test_a_loss_that_is_not_finite_stops_the_run_before_the_step(tmp_path, value, precision):
    good = toy_job(None, steps=7, precision=precision)
    fit(good)
    loader = ToyLoader(spoil={7: value}, accumulate=2)
    job = toy_job(tmp_path, loader=ToyLoader(spoil={7: value}), precision=precision, save_steps=5)
    job.rate = good.rate
    with pytest.raises(NotFinite) as error:
        fit(job)
    names = next(loader.batches(7))
    names = [n for b in names for n in b.names]
    assert str(error.value) == (
        "The loss of step 7 is not finite; the weights are as they were before it."
        f" Images: {', '.join(names[:4])} and 4 more."
    )
    assert error.value.names == names
    for name, before in weights(good).items():
        assert torch.equal(before, weights(job)[name]), name
    assert job.checkpoints.steps() == [5]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("steps", [8, 20], ids=["last step", "in between"])
def test_a_fault_that_the_host_sees_a_step_late_has_touched_no_weight(
    monkeypatch, tmp_path, optimizer, steps
):
    """As on a GPU: the optimizer is called, and the mark on the device holds it back."""
    monkeypatch.setattr(loop, "Guard", functools.partial(Guard, lag=1))
    good = toy_job(None, steps=7, optimizer=optimizer, validation=None)
    job = toy_job(
        tmp_path, steps=steps, optimizer=optimizer, validation=None, loader=ToyLoader(spoil={7: float("nan")})
    )
    job.rate = good.rate
    fit(good)
    with pytest.raises(NotFinite, match="The loss of step 7 is not finite") as error:
        fit(job)
    assert error.value.names == next(ToyLoader().batches(7))[0].names
    after = job.task.state_dict()
    assert all(torch.equal(v, after[k]) for k, v in good.task.state_dict().items())
    assert job.checkpoints.steps() == []


def test_a_gradient_that_is_not_finite_stops_the_run_too():
    job = toy_job(None)
    job.task.model.head.weight.register_hook(lambda g: g * float("nan") if g.abs().sum() > 0 else g)
    before = weights(job)
    with pytest.raises(NotFinite, match=r"^The gradient of step 0 is not finite"):
        fit(job)
    assert all(torch.equal(v, weights(job)[k]) for k, v in before.items())


def test_an_fp16_overflow_leaves_the_step_out_and_goes_on():
    job = toy_job(None, steps=6, precision="fp16")
    seen = []

    def overflow(g):
        seen.append(1)
        return g * float("inf") if len(seen) == 3 else g

    job.task.model.head.weight.register_hook(overflow)
    states = []
    job.task.after_update = lambda progress, good: states.append(job.task.model.head.weight.detach().clone())
    fit(job)
    assert torch.equal(states[1], states[2])
    assert not torch.equal(states[2], states[3])
    steps = {float(s["step"]) for s in job.optimizer.state.values()}
    assert steps == {5.0}


def test_fp16_gradients_that_stay_infinite_are_a_fault():
    job = toy_job(None, steps=60, precision="fp16")
    job.task.model.head.weight.register_hook(lambda g: g * float("nan"))
    with pytest.raises(NotFinite, match=r"^The gradient of step 16 is not finite"):  # 2 ** 16 halved 16 times
        fit(job)


def test_clipping_bounds_the_step():
    norms = []
    for clip in (0.0, 1e-3):
        job = toy_job(None, steps=1, optimizer="sgd", clip=clip)
        job.rate = lambda step: 1.0
        before = {k: v.clone() for k, v in job.task.named_parameters()}
        for group in job.optimizer.param_groups:
            group["weight_decay"] = 0.0
        fit(job)
        norms.append(
            sum((v - before[k]).square().sum() for k, v in job.task.named_parameters()).sqrt().item()
        )
    assert norms[0] > 0.05
    assert norms[1] == pytest.approx(1e-3, rel=1e-2)


class Broken(Reporter):
    def step(self, record):
        raise RuntimeError("no network")


def test_a_reporter_that_fails_costs_one_warning():
    heard = Listener()
    fit(toy_job(None, steps=12, reporters=Reporters([Broken(), heard])))
    assert heard.notes == ["Broken failed, the run continues: RuntimeError: no network"]
    assert len(heard.records) == 4


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_ends_the_step_saves_and_says_how_to_go_on(tmp_path, number):
    class Stop(ToyLoader):
        def batches(self, start):
            for step, micros in enumerate(super().batches(start), start):
                if step == 6:
                    os.kill(os.getpid(), number)
                yield micros

    before = signal.getsignal(number)
    job = toy_job(tmp_path, loader=Stop(), how_to_continue="tetravit train --resume RUN")
    with pytest.raises(Interrupted) as error:
        fit(job)
    assert str(error.value) == (
        f"Stopped by {number.name} after step 7 of 40; continue with: tetravit train --resume RUN"
    )
    assert error.value.exit_code == 75
    assert job.checkpoints.steps() == [7]
    assert signal.getsignal(number) is before


def test_a_signal_inside_an_evaluation_does_not_wait_for_its_end(tmp_path):
    class Slow(ToyValidation):
        read = 0

        def __iter__(self):
            for part in super().__iter__():
                if self.read == 0:
                    os.kill(os.getpid(), signal.SIGTERM)
                self.read += 1
                yield part

    slow = Slow()
    job = toy_job(tmp_path, validation=slow)
    averaged, live = job.ema.state(), job.task.model.state_dict()
    with pytest.raises(Interrupted, match="after step 5 of 40"):
        fit(job)
    assert job.checkpoints.steps() == [5]
    assert not torch.equal(averaged["conv.weight"], live["conv.weight"])
    again = toy_job(tmp_path, steps=6)  # the evaluation that was cut is made up for
    fit(again)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(x["event"], x["step"]) for x in lines] == [
        ("step", 3), ("evaluation", 5), ("step", 6), ("evaluation", 6),
    ]  # fmt: skip


def test_a_second_sigint_ends_the_process_at_once(tmp_path):
    program = (
        "import signal, time\n"
        "from tetravit.engine.signals import Signals\n"
        "with Signals():\n"
        "    print('ready', flush=True)\n"
        "    while True: time.sleep(0.05)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) == -signal.SIGINT
    process.stdout.close()


def test_lines_of_a_run_that_died_before_its_first_checkpoint_go(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"event": "step", "step": 3}\n{"event"')
    fit(toy_job(tmp_path, steps=4))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [3, 4, 4]


def test_saving_by_minutes_and_by_epochs(tmp_path):
    job = toy_job(tmp_path / "a", steps=12, save_minutes=1e-9, keep=20)
    fit(job)
    assert job.checkpoints.steps() == list(range(1, 13))
    job = toy_job(tmp_path / "b", steps=12, save_epochs=2, keep=20)
    fit(job)
    assert job.checkpoints.steps() == [10, 12]


def test_the_best_weights_are_handed_over_while_the_model_holds_them():
    best = []
    job = toy_job(None, steps=30)
    job.on_best = lambda record, findings: best.append(
        (record, {k: v.clone() for k, v in job.task.model.state_dict().items()})
    )
    progress = fit(job)
    reached = [(r["top1"], -r["loss"]) for r, _ in best]
    assert reached == sorted(set(reached))
    record, state = best[-1]
    assert (progress.best, progress.best_step) == (record["top1"], record["step"])
    job.task.model.load_state_dict(state)
    job.task.eval()
    with torch.no_grad():
        assert scored(job.task, ToyValidation()).values["top1"] == record["top1"]


@pytest.mark.parametrize(
    ("losses", "step"), [((3.0, 2.0, 1.0), 3), ((1.0, 2.0, 3.0), 1), ((2.0, 2.0, 1.0), 3), ((None,) * 3, 1)]
)
def test_the_best_of_a_tie_is_the_later_with_the_lower_loss(monkeypatch, losses, step):
    job = toy_job(None, steps=3, evaluate_steps=1)
    job.ema = None
    rest = iter(losses)

    def score(model, loaders):
        loss = next(rest)
        return Scores({"top1": 0.5} | ({} if loss is None else {"loss": loss}))

    monkeypatch.setattr(job.protocol, "score", score)
    state = fit(job)
    assert (state.best, state.best_step, state.best_loss) == (0.5, step, losses[step - 1])


def test_a_checkpoint_without_the_loss_of_the_best_still_resumes():
    assert RunState(done=3, evaluated=3, best=0.5, best_step=3, metric="top1").best_loss is None


def test_findings_tell_what_was_wrong():
    job = toy_job(None, steps=3)
    fit(job)
    job.task.eval()
    with torch.no_grad():
        scores = scored(job.task, [batch(list(range(30)))])
    matrix = torch.tensor(scores.findings["confusion"]["matrix"])
    assert matrix.sum() == 30
    assert matrix.diagonal().sum() / 30 == pytest.approx(scores.values["top1"])
    mistakes = scores.findings["mistakes"]
    assert len(mistakes) == min(24, 30 - int(matrix.diagonal().sum()))
    assert all(m["label"] != m["predicted"] and m["name"] == f"toy/{m['index']}" for m in mistakes)
    assert [m["confidence"] for m in mistakes] == sorted((m["confidence"] for m in mistakes), reverse=True)


def test_bf16_reaches_the_model_and_its_weights_stay_float32():
    job, seen = toy_job(None, steps=10, memory_format="channels_last", precision="bf16"), []
    job.task.model.conv.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    before = job.task.model.conv.weight.clone()
    state = fit(job)
    assert set(seen) == {torch.bfloat16}
    assert job.task.model.conv.weight.dtype == torch.float32
    assert not torch.equal(before, job.task.model.conv.weight)
    assert state.best is not None
