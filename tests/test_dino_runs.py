"""Runs of the task `dino`, from a recipe to a folder and back."""

import json
import multiprocessing
import os
import shutil
import socket

import pytest
import torch

from tetravit.engine.checkpoint import read
from tetravit.models import load
from tetravit.recipe import loads
from tetravit.runs import train
from tetravit.runs.build import build
from tetravit.runs.evaluate import evaluate
from tetravit.runs.plan import plan
from tetravit.tasks.dino import Dino
from tetravit.world import World

pytestmark = pytest.mark.slow  # whole runs and other processes

STEPS = 6
RECIPE = """
steps = 6

[task]
name = "dino"
prototypes = 16
hidden = 16
bottleneck = 8
norm = "batch"
last = "free"
teacher_temp = [0.04, 0.07]
teacher_temp_epochs = 2
momentum = [0.9, 1.0]
freeze_last_layer = 1
global_views = ["affine(20, 0.1, size=48) | jitter(0.5)", "affine(20, 0.1, size=48) | blur(0.5) | solarize(0.5)"]
local_view = "crop(32, (0.3, 0.6))"
local_views = 1

[evaluate]
protocol = "knn"
ks = [1, 5]

[model]
name = "xcit_nano_12_p8"
drop_path = 0.2
options = { depth = 1, dim = 32 }

[data]
name = "digits"
image_size = 32
batch_size = 8
workers = 0
options = { fraction = 0.02 }

[optim]
lr = 1e-3
lr_batch = 0
warmup_epochs = 1
decay = "authors"
schedules = { weight_decay = "cosine(0.04, 0.4)" }
clip = 0.3
clip_by = "each"

[run]
device = "cpu"
save_steps = 1
keep = 20
log_steps = 2
evaluate_epochs = 0
"""


def run(folder, *overrides, **options):
    train(loads(RECIPE, overrides), folder, reporters=[], **options)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return run(tmp_path_factory.mktemp("dino") / "run")


def outcome(folder):
    found = read(folder / "checkpoints" / f"step_{STEPS:06d}")
    tensors = {f"{part}/{k}": v for part in ("model", "optimizer") for k, v in found.tensors(part).items()}
    return tensors, (folder / "metrics.jsonl").read_bytes()


def test_a_cut_after_any_step_resumes_to_the_same_bits(whole, tmp_path):
    wanted, log = outcome(whole)
    assert {"model/center", "model/window", "model/teacher.backbone.cls_token"} <= wanted.keys()
    for cut in range(1, STEPS):
        folder = tmp_path / str(cut)
        shutil.copytree(whole, folder)
        for later in range(cut + 1, STEPS + 1):
            shutil.rmtree(folder / "checkpoints" / f"step_{later:06d}")
        train(None, resume=folder, reporters=[])
        again, log_again = outcome(folder)
        assert again.keys() == wanted.keys()
        for name in wanted:
            assert torch.equal(again[name], wanted[name]), (cut, name)
        assert log_again == log


def test_another_number_of_workers_changes_nothing(whole, tmp_path):
    again, log = outcome(run(tmp_path / "run", "data.workers=2"))
    wanted, first_log = outcome(whole)
    assert all(torch.equal(again[name], wanted[name]) for name in wanted)
    assert log == first_log


def test_the_log_has_what_shows_a_collapse(whole):
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert {"teacher_entropy", "mean_entropy", "information", "feature_spread", "agreement"} <= set(lines[0])
    assert {"center_norm", "center_max"} <= set(lines[0])
    scores = next(line for line in lines if "knn_5" in line)
    assert 0 <= scores["knn_1"] <= 1


def test_the_weights_of_a_run_are_the_teachers_backbone(whole):
    state = read(whole / "checkpoints" / f"step_{STEPS:06d}").tensors("model")
    model = load(whole / "last.safetensors")
    assert model.num_classes == 0
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[f"teacher.{name}"]), name


def test_features_of_a_run_are_scored_by_any_protocol(whole):
    result = evaluate(whole, ["evaluate.protocol=linear", "evaluate.epochs=2"], device="cpu")
    assert set(result.scores) == {"linear", "linear_top5", "linear_best"}
    assert result.findings["probe"] == "cached"
    assert any("evaluate.features=augmented" in line for line in result.notes)
    changes = [
        "protocol=linear",
        "epochs=2",
        "features=augmented",
        "augment=crop(32, (0.5, 1.0)) | jitter(0.5)",
    ]
    result = evaluate(whole, [f"evaluate.{change}" for change in changes], device="cpu")
    assert set(result.scores) == {"linear", "linear_top5", "linear_best"}
    assert result.findings["probe"] == "augmented"
    result = evaluate(whole / "last.safetensors", ["evaluate.ks=[3]"], device="cpu")
    assert set(result.scores) == {"knn_3", "knn_3_top5"}


@pytest.mark.parametrize("weights", ["", "last.safetensors"])
def test_a_classifier_starts_from_the_teacher(whole, tmp_path, weights):
    text = (
        RECIPE[: RECIPE.index("[task]")] + '[task]\nname = "classify"\n' + RECIPE[RECIPE.index("[model]") :]
    )
    changes = [f"model.backbone_weights={whole / weights}", "optim.lr=1e-12", "steps=1", "optim.schedules={}"]
    recipe = loads(text, [*changes, "data.image_size=32", "data.augment=resize(32)", "optim.warmup_epochs=0"])
    train(recipe, tmp_path / "run", reporters=[])
    tuned, teacher = load(tmp_path / "run" / "last.safetensors"), load(whole / "last.safetensors")
    assert tuned.num_classes == 10
    torch.testing.assert_close(tuned.backbone.cls_token, teacher.backbone.cls_token, atol=1e-6, rtol=0)


def test_float16_and_groups_of_views(tmp_path):
    folder = run(tmp_path / "run", "run.precision=fp16", "task.views_at_once=1", "steps=2")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["loss"] > 0


@pytest.mark.parametrize("on_collapse", ["warn", "stop"])
def test_a_collapse_is_an_event(tmp_path, monkeypatch, on_collapse):
    text = "The teacher has collapsed: so it is."
    monkeypatch.setattr(Dino, "alarm", lambda self, values: text if self.training and len(values) else None)
    changes = ["steps=2", f"run.on_collapse={on_collapse}"]
    if on_collapse == "stop":
        with pytest.raises(ValueError) as error:
            run(tmp_path / "run", *changes)
        assert str(error.value) == f"{text} The run stopped after step 2: run.on_collapse is stop."
    else:
        run(tmp_path / "run", *changes)
        assert text in (tmp_path / "run" / "report.html").read_text()
    events = (tmp_path / "run" / "events.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in events] == [{"event": "collapse", "step": 2, "text": text}]


def test_the_plan_counts_no_classes():
    lines = dict(plan(build(loads(RECIPE), World()), "run").lines)
    assert lines["model"] == "xcit_nano_12_p8, 0.05 M parameters, no classes"


def two(rank, port, folder, overrides):
    os.environ.update(
        RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    torch.set_num_threads(1)
    run(folder, *overrides)


@pytest.mark.slow
@pytest.mark.parametrize("at_once", [0, 1])
def test_two_ranks_are_one(tmp_path, at_once):
    # AdamW would make steps of the rounding of gradients that are 0: those of biases in front of a BatchNorm.
    overrides = ["model.drop_path=0.0", f"task.views_at_once={at_once}", "optim.name=sgd", "optim.lr=0.02"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=two, args=(r, port, tmp_path / "two", overrides)) for r in range(2)]
    for process in ranks:
        process.start()
    run(tmp_path / "one", *overrides)
    for process in ranks:
        process.join()
        assert process.exitcode == 0
    one, two_ranks = outcome(tmp_path / "one")[0], outcome(tmp_path / "two")[0]
    for name, value in one.items():
        torch.testing.assert_close(
            two_ranks[name], value, atol=1e-4, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}"
        )


DENSE = """
steps = 1

[task]
name = "segment"

[model]
name = "xcit_nano_12_p8"
options = { depth = 4, dim = 32, out_blocks = [0, 1, 2, 3] }
head_options = { width = 16 }

[data]
name = "shapes_seg"
image_size = 64
batch_size = 2
workers = 0
augment = "flip"
options = { size = 64, count = 4 }

[optim]
lr = 1e-12
warmup_epochs = 0

[run]
device = "cpu"
evaluate_epochs = 0
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        ["model.head=semantic_fpn"],
        ["task.name=detect", "model.head=retinanet", "data.name=shapes_det", "data.mode=fit"],
    ],
    ids=["segment", "detect"],
)
def test_a_segmenter_and_a_detector_start_from_the_teacher(tmp_path, changes):
    source = run(tmp_path / "dino", "model.options={depth = 4, dim = 32}", "steps=2")
    train(loads(DENSE, [*changes, f"model.backbone_weights={source}"]), tmp_path / "run", reporters=[])
    tuned, teacher = load(tmp_path / "run" / "last.safetensors"), load(source)
    assert tuned.kind != teacher.kind
    start = dict(teacher.backbone.named_parameters())
    tuned_blocks = {n: p for n, p in tuned.backbone.named_parameters() if n.startswith("blocks.")}
    assert tuned_blocks
    for name, value in tuned_blocks.items():
        torch.testing.assert_close(value, start[name], atol=1e-6, rtol=0)


def test_images_smaller_than_a_view():
    objects = build(loads(RECIPE), World())
    line = "the first training image has 8 x 8 pixels, the largest view 48 x 48: crops are enlarged"
    assert objects.notes.count(line) == 1
    assert [view.images.shape[-1] for view in objects.task.example(2, 32).views] == [48, 32]
    large = [f"task.{view}=crop(8, (0.3, 0.6))" for view in ("local_view",)]
    large.append('task.global_views=["crop(8)", "crop(8)"]')
    assert line not in build(loads(RECIPE, large), World()).notes
