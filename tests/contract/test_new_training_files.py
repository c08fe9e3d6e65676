"""A new task, protocol, optimizer, schedule, strategy, tracker and recipe: one file each, used from Python."""

import json

import pytest
from tests.dropped import package_with, python

TASK = '''
"""A student that follows a slow teacher of itself, on two views."""
import copy
from typing import Literal
import torch
from pydantic import Field
from tetravit.models import create_model
from tetravit.tasks.base import Task, TaskConfig


class EchoConfig(TaskConfig):
    """The section of it."""

    name: Literal["echo"] = "echo"
    momentum: float = Field(default=0.5, description="Share of the teacher that a step keeps.")


class Echo(Task):
    """Same logits for two views of an image."""

    Config = EchoConfig
    data_kinds = ("classify", "unlabelled")
    protocol = "width"

    def __init__(self, model, config, data):
        super().__init__(model, config, data)
        self.teacher = copy.deepcopy(model).requires_grad_(False)
        self.register_buffer("good_steps", torch.zeros((), dtype=torch.int64))

    @classmethod
    def create(cls, name, *, data, **model_options):
        return create_model(name, num_classes=data.num_classes, **model_options)

    def views(self):
        return ["crop", "crop | flip"]

    def schedules(self, total_steps, steps_per_epoch, batch_size):
        return {"weight_decay": lambda step: 0.01 * step}

    def step(self, batch, progress):
        (view,) = batch.views
        target = self.teacher(batch.images)
        return {"loss": (self.model(view.images) - target).square().mean() + 0.1 * progress.fraction}

    def after_update(self, progress, good):
        with torch.no_grad():
            for slow, fast in zip(self.teacher.parameters(), self.model.parameters(), strict=True):
                slow.copy_(torch.where(good, slow.lerp(fast, 1 - self.config.momentum), slow))
            self.good_steps += good

    def weights(self):
        return self.teacher


TASKS = {"echo": Echo}
'''
PROTOCOL = '''
"""How wide the logits spread; lower is better."""
import torch
from pydantic import Field
from tetravit.protocols.base import Protocol, ProtocolConfig, Scores


class WidthConfig(ProtocolConfig):
    """The section of it."""

    factor: float = Field(default=1.0, description="The score is multiplied with it.")


class Width(Protocol):
    """Standard deviation of logits, on both parts of the data."""

    name = "width"
    kinds = ("classify",)
    primary_metrics = ("width",)
    best_is = "lower"
    Config = WidthConfig

    def score(self, model, loaders):
        parts = [torch.cat([model(b.images) for b in part]) for part in (loaders.train, loaders.validation)]
        return Scores({"width": self.config.factor * float(parts[0].std()), "images": len(parts[1])})


PROTOCOLS = {"width": Width}
'''
OPTIMIZER = '''
"""Steps of the sign of the gradient; not fused, so a bad step is left out by the loop."""
import torch
from tetravit.engine.optimizers.base import OptimizerRow, checked_options


class Sign(torch.optim.Optimizer):
    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(group["lr"] * (p.grad.sign() + group["weight_decay"] * p))


def build(groups, settings):
    options = checked_options("sign", settings.options, {"weight_decay": 0.0})
    return Sign(groups, {"lr": settings.lr, **options})


OPTIMIZERS = {"sign": OptimizerRow(build, slots=lambda settings: 0)}
'''
SCHEDULE = '''
"""Half the peak at every second step."""


def halves(span):
    return lambda step: span.peak * (0.5 if step % 2 else 1.0) * span.options.get("factor", 1.0)


SCHEDULES = {"halves": halves}
'''
STRATEGY = '''
"""One process, counted."""
from contextlib import nullcontext
from tetravit.engine.strategies.base import Strategy, Wrapped


class Alone(Strategy):
    def wrap(self, task, world):
        return Wrapped(task, nullcontext)


STRATEGIES = {"alone": Alone}
'''
TRACKER = '''
"""Lines in RUN/echoes.txt."""
from tetravit.trackers.base import Tracker


class Echoes(Tracker):
    def open(self, run, identity):
        self.path = run.folder / "echoes.txt"
        return "echoes"

    def scalars(self, step, values):
        with self.path.open("a") as file:
            print(step, *sorted(values), file=file)


TRACKERS = {"echoes": Echoes}
'''
RECIPE = """# Echoes of digits.
epochs = 2

[task]
name = "echo"
momentum = 0.75

[evaluate]
factor = 2.0

[model]
name = "xcit_nano_12_p16"
options = { depth = 1 }

[data]
name = "digits"
image_size = 32
batch_size = 32
workers = 0
options = { fraction = 0.1 }

[optim]
name = "sign"
options = { weight_decay = 0.5 }
schedule = "halves"
schedule_options = { factor = 0.5 }
lr = 1e-3
lr_batch = 0
warmup_epochs = 0

[run]
device = "cpu"
strategy = "alone"
log_steps = 1
"""
FILES = {
    "tasks/echo.py": TASK,
    "protocols/width.py": PROTOCOL,
    "engine/optimizers/sign.py": OPTIMIZER,
    "engine/schedules/halves.py": SCHEDULE,
    "engine/strategies/alone.py": STRATEGY,
    "trackers/echoes.py": TRACKER,
    "recipes/echo.toml": RECIPE,
}
FROM_PYTHON = """
from tetravit.engine.optimizers import OPTIMIZERS
from tetravit.engine.schedules import SCHEDULES, Span
from tetravit.engine.strategies import STRATEGIES
from tetravit.runs.evaluate import evaluate
from tetravit.protocols import PROTOCOLS
from tetravit.recipe import entries, list_recipes, load
from tetravit.tasks import TASKS
assert {"echo"} <= TASKS.keys() and {"width"} <= PROTOCOLS.keys() and "alone" in STRATEGIES
assert SCHEDULES["halves"](Span(4, 4, 1, peak=2.0))(1) == 1.0
rows = {e.key: e for e in entries(load(list_recipes()["echo"], ["task.momentum=0.9"]))}
print(rows["task.momentum"].value, rows["task.momentum"].origin, rows["task.momentum"].description)
print(evaluate("run", ["evaluate.factor=1.0"], device="cpu").scores["images"])
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = package_with(tmp_path_factory.mktemp("package"), FILES)
    python(folder, "-m", "tetravit", "train", "echo", "--into", folder / "run", "--log", "echoes")
    return folder


@pytest.mark.slow
def test_a_recipe_trains_with_them(folder):
    run = folder / "run"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [x for x in lines if x["event"] == "step"]
    assert [x["lr"] for x in steps[:3]] == [5e-4, 2.5e-4, 5e-4]
    scores = [x for x in lines if x["event"] == "evaluation"]
    assert {"width", "images"} <= scores[0].keys()
    assert (
        "2 time/images_per_s time/seconds train/epoch train/loss train/lr" in (run / "echoes.txt").read_text()
    )


@pytest.mark.slow
def test_the_teacher_is_in_checkpoints_and_is_what_is_saved(folder):
    import safetensors.torch

    run = folder / "run"
    newest = max((run / "checkpoints").iterdir())
    state = safetensors.torch.load_file(newest / "model.safetensors")
    saved = safetensors.torch.load_file(run / "last.safetensors")
    assert state["good_steps"] == 8
    assert (state["teacher.head.weight"] == saved["head.weight"]).all()
    assert (state["model.head.weight"] != saved["head.weight"]).any()


@pytest.mark.slow
def test_they_are_used_from_python_and_their_keys_are_explained(folder):
    out = python(folder, "-c", FROM_PYTHON, cwd=folder)
    assert out.splitlines() == ["0.9 command line Share of the teacher that a step keeps.", "359"]
