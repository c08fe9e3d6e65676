"""What a task may do around an update, and settings that change over a run."""

import math

import pytest
import torch
from engine_toy import ToyLoader, toy_job
from torch import nn

from tetravit.engine import optim
from tetravit.engine.clipping import clipped
from tetravit.engine.loop import fit
from tetravit.engine.optim import OptimConfig
from tetravit.engine.optimizers.base import OptimizerRow
from tetravit.engine.schedules import SCHEDULES, Span


def test_hooks_follow_the_step_with_its_progress():
    job, calls = toy_job(None, steps=6, validation=None), []
    real = job.task.step
    job.task.step = lambda batch, progress: (calls.append(("step", progress)), real(batch, progress))[1]
    job.task.before_update = lambda progress: calls.append(("before", progress))
    job.task.after_update = lambda progress, good: calls.append(("after", progress, good))
    fit(job)
    assert [c[0] for c in calls[:3]] == ["step", "before", "after"]
    assert [c[1].step for c in calls[::3]] == list(range(6))
    last = calls[-1]
    assert (last[1].epoch, last[1].fraction, last[1].total_steps) == (1, 1.0, 6)
    assert last[2].dtype == torch.bool
    assert last[2].shape == ()


def test_gradients_that_before_update_drops_move_nothing():
    job = toy_job(None, steps=2, validation=None)
    head = job.task.model.head

    def drop(progress):
        if progress.epoch == 0:
            head.weight.grad = None

    job.task.before_update = drop
    before = {name: p.clone() for name, p in job.task.model.named_parameters()}
    fit(job)
    after = dict(job.task.model.named_parameters())
    assert torch.equal(before["head.weight"], after["head.weight"])  # no weight decay either
    assert not torch.equal(before["head.bias"], after["head.bias"])


def test_an_fp16_overflow_moves_neither_weights_nor_their_average_nor_a_teacher():
    job, seen = toy_job(None, steps=5, precision="fp16", validation=None), []
    job.task.model.head.weight.register_hook(lambda g: g * float("inf") if len(seen) == 2 else g)
    states = []

    def after(progress, good):
        seen.append(bool(good))
        states.append({k: v.clone() for k, v in job.ema.state().items()})

    job.task.after_update = after
    fit(job)
    assert seen == [True, True, False, True, True]
    assert all(torch.equal(v, states[2][k]) for k, v in states[1].items())
    assert not torch.equal(states[2]["head.weight"], states[3]["head.weight"])


def test_a_teacher_that_goes_by_good_is_spared_where_the_host_sees_a_fault_late(monkeypatch):
    """As on a GPU, where the flag arrives a step later than the fault."""
    import functools

    from tetravit.engine import loop
    from tetravit.engine.guard import Guard, NotFinite

    monkeypatch.setattr(loop, "Guard", functools.partial(Guard, lag=1))
    job, flags = toy_job(None, loader=ToyLoader(spoil={3: float("nan")}), validation=None), []
    job.task.after_update = lambda progress, good: flags.append(bool(good))
    with pytest.raises(NotFinite):
        fit(job)
    assert flags == [True, True, True, False]


class Plain(torch.optim.SGD):
    """Not fused: it does not know `found_inf`."""


def test_an_optimizer_that_is_not_fused_leaves_out_a_bad_step():
    job, seen = toy_job(None, steps=3, precision="fp16", validation=None), []
    job.optimizer = Plain([{"params": list(job.task.parameters()), "scale": 1.0}], lr=0.1)
    job.task.model.head.weight.register_hook(lambda g: g * float("inf") if len(seen) == 1 else g)
    states = []
    job.task.after_update = lambda progress, good: (
        seen.append(bool(good)), states.append(job.task.model.head.weight.detach().clone())
    )  # fmt: skip
    fit(job)
    assert seen == [True, False, True]
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[1], states[2])


def gradients(values):
    made = [nn.Parameter(torch.zeros(len(v))) for v in values]
    for p, v in zip(made, values, strict=True):
        p.grad = torch.tensor(v)
    return made


def test_clipping_each_parameter_by_its_own_norm():
    made = gradients([[3.0, 4.0], [0.3, 0.4], [6.0, 8.0]])
    norm = clipped(made, [p.grad for p in made], 1.0, "each")
    assert norm == pytest.approx(math.sqrt(25 + 0.25 + 100))
    torch.testing.assert_close(made[0].grad, torch.tensor([3.0, 4.0]) / (5 + 1e-6))
    assert made[1].grad.tolist() == pytest.approx([0.3, 0.4])
    torch.testing.assert_close(made[2].grad, torch.tensor([6.0, 8.0]) / (10 + 1e-6))


def test_parameters_that_are_clipped_as_one():
    """As if both were one tensor, `qkv`."""
    made = gradients([[3.0, 4.0], [6.0, 8.0], [5.0, 12.0]])
    clipped(made, [p.grad for p in made], 2.0, "each", joint=[made[:2]])
    norm = math.sqrt(25 + 100)
    torch.testing.assert_close(made[0].grad, torch.tensor([3.0, 4.0]) * 2 / (norm + 1e-6))
    torch.testing.assert_close(made[1].grad, torch.tensor([6.0, 8.0]) * 2 / (norm + 1e-6))
    torch.testing.assert_close(made[2].grad, torch.tensor([5.0, 12.0]) * 2 / (13 + 1e-6))


def test_no_clipping_returns_the_norm():
    made = gradients([[3.0, 4.0]])
    assert clipped(made, [made[0].grad], 0.0, "each") == 5.0
    assert made[0].grad.tolist() == [3.0, 4.0]


def test_settings_follow_their_schedules_and_zero_decay_stays():
    job = toy_job(None, steps=4, validation=None)
    settings = OptimConfig(schedules={"weight_decay": "cosine(0.04, 0.4)", "beta1": "linear(0.9, 0.5)"})
    job.schedules = settings.other_schedules(total=4, steps_per_epoch=4)
    seen = []
    job.task.after_update = lambda progress, good: seen.append(
        [(g["weight_decay"], g["betas"][0]) for g in job.optimizer.param_groups]
    )
    fit(job)
    by_hand = [0.4 + (0.04 - 0.4) * (1 + math.cos(math.pi * j / 4)) / 2 for j in range(4)]
    decays = {index: [row[index][0] for row in seen] for index in range(len(seen[0]))}
    assert sorted(map(sum, decays.values())) == pytest.approx([0.0, sum(by_hand)])
    assert [row[0][1] for row in seen] == pytest.approx([0.9, 0.8, 0.7, 0.6])


@pytest.mark.parametrize(
    ("schedules", "message"),
    [
        ({"decay": "cosine(0, 1)"}, "optim.schedules has no setting 'decay'."),
        ({"weight_decay": "cosine(0)"}, "optim.schedules.weight_decay reads SCHEDULE(FIRST, LAST); got 'cosine(0)'."),
        ({"weight_decay": "cosin(0, 1)"}, "Unknown schedule 'cosin'. Did you mean 'cosine'?"),
    ],
)  # fmt: skip
def test_schedules_that_do_not_read(schedules, message):
    with pytest.raises(ValueError, match="schedule") as error:
        OptimConfig(schedules=schedules)
    assert message in str(error.value)


def test_a_setting_that_the_optimizer_does_not_have():
    optimizer = optim.build(nn.Linear(2, 2), OptimConfig(name="sgd"))
    with pytest.raises(ValueError, match=r"^SGD has no setting 'beta1' that a schedule could change\.$"):
        optim.set_values(optimizer, 0.1, {"beta1": 0.5})


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        self.head = nn.Linear(2, 2)


def rates(module, table):
    groups = optim.groups(module, OptimConfig(rates=table))
    names = {p: n for n, p in module.named_parameters()}
    return {names[p]: g["scale"] for g in groups for p in g["params"] if names[p].endswith("weight")}


def test_rates_by_module():
    assert rates(Two(), {"backbone": 0.1, "backbone.1": 0.5}) == {
        "backbone.0.weight": 0.1, "backbone.1.weight": 0.5, "head.weight": 1.0,
    }  # fmt: skip
    inside = nn.ModuleDict({"model": Two()})  # as in a task
    assert rates(inside, {"head": 2.0})["model.head.weight"] == 2.0
    with pytest.raises(ValueError, match=r"^optim\.rates: no module 'bakbone'\. Did you mean 'backbone'\?$"):
        rates(Two(), {"bakbone": 0.1})


def test_a_task_groups_its_parameters_itself():
    class Own(Two):
        def parameter_groups(self, settings):
            return [{"params": list(self.head.parameters()), "weight_decay": 0.0}]

    optimizer = optim.build(Own(), OptimConfig())
    assert [len(g["params"]) for g in optimizer.param_groups] == [2]
    assert optimizer.param_groups[0]["scale"] == 1.0


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_is_a_function_of_the_step(name):
    span = Span(total=20, per_epoch=5, epochs=4, peak=1.0, start=0.1, floor=0.01, warmup=5, milestones=(2, 3))
    value = SCHEDULES[name](span)
    values = [value(step) for step in range(20)]
    assert [value(step) for step in reversed(range(20))] == values[::-1]
    assert max(values) <= 1.0
    assert min(values) >= 0.0


def test_options_that_an_optimizer_does_not_have():
    with pytest.raises(ValueError, match=r"^adamw has no option 'trust'; it takes none\.$"):
        optim.build(nn.Linear(2, 2), OptimConfig(options={"trust": 1}))
    assert isinstance(OptimizerRow(lambda groups, settings: None).slots(None), int)
