"""Freezing, linear probes, another size, other classes; what is told and refused before the first step."""

import json
import re

import pytest
import torch
from task_toys import described

from tetravit.engine.log import Reporter
from tetravit.engine.optim import OptimConfig
from tetravit.engine.profiling import fixed_mib, profile_step
from tetravit.layers import selective_recompute
from tetravit.models import create_model, load, save
from tetravit.recipe import validated
from tetravit.runs import train
from tetravit.runs.build import freeze
from tetravit.tasks import Task
from tetravit.tasks.classify import Classify, ClassifyConfig
from tetravit.weights.fileformat import read

BASE = {
    "epochs": 1,
    "task": {"name": "classify"},
    "model": {"name": "xcit_nano_12_p16", "options": {"depth": 1}},
    "data": {"name": "digits", "image_size": 32, "batch_size": 32, "augment": "crop", "workers": 0,
             "options": {"fraction": 0.1}},
    "optim": {"warmup_epochs": 0, "lr": 1e-2},
    "run": {"device": "cpu"},
}  # fmt: skip


def recipe(**changes):
    table = json.loads(json.dumps(BASE))
    for path, value in changes.items():
        section, _, key = path.partition("__")
        if key:
            table.setdefault(section, {})[key] = value
        else:
            table[section] = value
    return validated(table)


class Listener(Reporter):
    def __init__(self):
        self.plans = []

    def start(self, plan):
        self.plans.append(dict(plan.lines))


@pytest.fixture
def pretrained(tmp_path):
    """A model of 7 classes at 32 pixels."""
    torch.manual_seed(0)
    model = create_model("deit_tiny", num_classes=7, image_size=32, depth=2)
    save(model, tmp_path / "start.safetensors")
    return model, tmp_path / "start.safetensors"


def deit(file, **changes):
    return recipe(
        model={
            "name": "deit_tiny",
            "weights": str(file),
            "options": {"depth": 2},
            **changes.pop("model", {}),
        },
        **changes,
    )


@pytest.mark.slow
def test_a_linear_probe_moves_the_head_alone(pretrained, tmp_path):
    model, file = pretrained
    train(deit(file, model={"freeze": "backbone"}), tmp_path / "run", reporters=[])
    after = read(tmp_path / "run" / "last.safetensors")[0]
    before = model.state_dict()
    assert all(torch.equal(after[n], v) for n, v in before.items() if n.startswith("backbone."))
    assert after["head.weight"].shape == (10, 192)


@pytest.mark.parametrize(
    "name", ["xcit_nano_12_p16", "convit_tiny", "gcvit_xxtiny", "twins_svt_small", "deit_tiny"]
)
def test_a_probe_leaves_no_parameter_of_the_backbone(name):
    """Class tokens and position tables too, which belong to no group of layers."""
    with torch.device("meta"):
        model = create_model(name, num_classes=3)
    freeze(model, "backbone")
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {"head.weight", "head.bias"}


@pytest.mark.slow
def test_the_first_groups_can_stay(pretrained, tmp_path):
    model, file = pretrained
    train(deit(file, model={"freeze": 2}), tmp_path / "run", reporters=[])
    after = read(tmp_path / "run" / "last.safetensors")[0]
    moved = {
        n for n, v in model.state_dict().items() if not n.startswith("head") and not torch.equal(after[n], v)
    }
    assert {n.split(".")[1] for n in moved} == {"blocks", "norm"}
    assert not any(n.startswith("backbone.blocks.0.") for n in moved)


@pytest.mark.slow
def test_another_size_and_other_classes(pretrained, tmp_path):
    _, file = pretrained
    train(deit(file, data__image_size=64), tmp_path / "run", reporters=[])
    found = load(tmp_path / "run" / "last.safetensors")
    assert (found.num_classes, found.input.size) == (10, 64)
    assert found.backbone.pos_embed.grid == (4, 4)


def test_too_many_groups(pretrained, tmp_path):
    with pytest.raises(ValueError) as error:
        train(deit(pretrained[1], model={"freeze": 9}), tmp_path / "run", reporters=[])
    assert str(error.value) == "num_stages is between 0 and 4; got 9."
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"data__batch_size": 30, "run__accumulate": 4},
            "data.batch_size must be a multiple of GPUs x accumulation; got batch_size=30, 1 GPUs, accumulate=4.",
        ),
        (
            {"data__batch_size": 30, "run__accumulate": 2, "data__mix": "mixup(0.8)"},
            "data.mix pairs images, so each GPU needs an even number per micro-batch; got batch_size=30, 1 GPUs,"
            " accumulate=2: 15.",
        ),
    ],
    ids=["batch", "mixup"],
)
def test_refused_before_the_first_step(changes, message, tmp_path):
    with pytest.raises(ValueError) as error:
        train(recipe(**changes), tmp_path / "run", reporters=[])
    assert str(error.value) == message
    assert list(tmp_path.iterdir()) == []


def test_epochs_that_do_not_fit_their_parts():
    with pytest.raises(ValueError) as error:
        recipe(epochs=5, optim__warmup_epochs=3, optim__cooldown_epochs=3)
    assert str(error.value) == (
        "optim.warmup_epochs and optim.cooldown_epochs are together at most epochs; got 3 and 3 of 5."
    )


def test_a_dry_run_tells_what_would_run(tmp_path):
    heard = Listener()
    chosen = recipe(optim__faithful=True, run__accumulate=2, task__label_smoothing=0.1)
    train(chosen, tmp_path / "run", reporters=[heard], dry_run=True)
    (plan,) = heard.plans
    assert plan["steps"] == "1 epoch of 4 steps: 4 steps"
    assert plan["batch"] == "32 = 1 x 2 x 16 (processes x accumulation x batch)"
    assert plan["learning rate"].endswith("at the end, as in the deit release")
    assert re.fullmatch(r"about \d+ MiB per process", plan["memory"])
    assert re.fullmatch(r"about \d+ s at [\d.e+]+ images/s, measured on 4 images per process", plan["time"])
    assert list(tmp_path.iterdir()) == []


def task(**options):
    torch.manual_seed(0)
    model = create_model("xcit_nano_12_p16", num_classes=3, depth=1, **options)
    return Classify(model, ClassifyConfig(), described(3))


def rehearsed(made, images=4, size=32):
    return profile_step(
        made,
        images=images,
        size=size,
        precision="float32",
        device=torch.device("cpu"),
        settings=OptimConfig(),
    )


def test_a_rehearsal_changes_nothing():
    made = task(drop_path=0.1).eval()
    before = {n: v.clone() for n, v in made.state_dict().items()}
    torch.manual_seed(3)
    state = torch.get_rng_state()
    rehearsed(made)
    assert all(torch.equal(v, before[n]) for n, v in made.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in made.parameters())
    assert not made.training


def test_a_rehearsal_counts_what_the_backward_pass_needs(monkeypatch):
    monkeypatch.setattr(selective_recompute, "MIN_VALUES", 0)
    small, large, largest = (rehearsed(task(), size=size) for size in (32, 64, 128))
    # Four times the patches each time; what does not depend on them (the class token, folded weights) cancels.
    assert 3 < (largest.kept_mib - large.kept_mib) / (large.kept_mib - small.kept_mib) < 4.5
    assert small.memory_mib(8) - small.memory_mib(4) == pytest.approx(small.kept_mib)
    assert small.step_seconds(8) == pytest.approx(2 * small.seconds)


def test_weights_gradients_moments_and_average_are_counted():
    made = Task(torch.nn.Linear(1024, 256, bias=False), None, described(3))  # 1 MiB
    assert fixed_mib(made, OptimConfig()) == 4.0
    assert fixed_mib(made, OptimConfig(ema=0.9)) == 5.0
    assert fixed_mib(made, OptimConfig(name="sgd")) == 3.0
    assert fixed_mib(made.requires_grad_(False), OptimConfig()) == 1.0
    made.external_modules = lambda: [torch.nn.Linear(1024, 512, bias=False)]  # a teacher
    assert fixed_mib(made, OptimConfig()) == 3.0
