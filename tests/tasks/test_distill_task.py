"""Distillation: the loss by its formula, who sees what, where the teacher is not, and what is refused."""

import json
import sys

import pytest
import torch
from task_toys import START, data_section, described, scored
from torch import nn
from torch.nn import functional as F

from tetravit.cli import main
from tetravit.engine import optim
from tetravit.models import create_model, save
from tetravit.models.teacher import Teacher, load_teacher
from tetravit.recipe import dump, validated
from tetravit.runs import train
from tetravit.structures import Batch, Preprocess
from tetravit.tasks.distill import Distill, DistillConfig
from tetravit.tasks.parts.classification import Classification

K = 4
IMAGES = Preprocess(size=32)


class Linear(nn.Module):
    """Logits of the mean colour; notes what it was shown."""

    num_classes = K

    def __init__(self, seed):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.fc = nn.Linear(3, K)
        self.seen = []
        with torch.no_grad():
            self.fc.weight.normal_(generator=torch.Generator().manual_seed(seed))
            self.fc.bias.zero_()

    def forward(self, images):
        self.seen.append(images)
        return self.fc(self.norm(images).mean((2, 3)))


def batch(count=6):
    generator = torch.Generator().manual_seed(3)
    return Batch(torch.randn(count, 3, 4, 4, generator=generator), torch.arange(count) % K)


def task(mix="", **config):
    made = Distill(Linear(0), DistillConfig(**config), described(K))
    Classification.prepare(made, data_section(mix))
    made.teach(Teacher(Linear(1), K, IMAGES), IMAGES)
    return made.train()


def both(made, data):
    with torch.no_grad():
        return made.model(data.images), made.teacher(data.images)


def test_hard_distillation_is_half_labels_half_first_choices():
    made, data = task(label_smoothing=0.1), batch()
    ours, theirs = both(made, data)
    wanted = 0.5 * F.cross_entropy(ours, data.targets, label_smoothing=0.1)
    wanted += 0.5 * F.cross_entropy(ours, theirs.argmax(1))
    torch.testing.assert_close(made.step(data, START)["loss"].detach(), wanted)


@pytest.mark.parametrize(("alpha", "tau"), [(0.5, 1.0), (0.3, 2.5)])
def test_soft_distillation_is_the_divergence_at_a_temperature(alpha, tau):
    made, data = task(kind="soft", alpha=alpha, tau=tau), batch()
    ours, theirs = both(made, data)
    p, q = (theirs / tau).softmax(1), (ours / tau).softmax(1)
    divergence = (p * (p.log() - q.log())).sum() * tau**2 / ours.numel()
    wanted = (1 - alpha) * F.cross_entropy(ours, data.targets) + alpha * divergence
    torch.testing.assert_close(made.step(data, START)["loss"].detach(), wanted)


def test_the_teacher_sees_the_same_mixed_images():
    made = task(mix="mixup(0.8) | cutmix(1.0)")
    torch.manual_seed(5)
    made.step(batch(), START)
    assert made.teacher.seen[-1] is made.model.seen[-1]
    assert not torch.equal(made.model.seen[-1], batch().images)


@pytest.fixture
def student():
    """A model with a distillation token, whose two heads answer differently."""
    torch.manual_seed(0)
    return create_model("deit_tiny_distilled", num_classes=K, image_size=32, dim=16, num_heads=2, depth=1)


def taught_by_token(student, **config):
    made = Distill(student, DistillConfig(**config), described(K))
    made.teach(Teacher(Linear(1), K, IMAGES), IMAGES)
    generator = torch.Generator().manual_seed(3)
    data = Batch(torch.randn(6, 3, 32, 32, generator=generator), torch.arange(6) % K)
    return made.train(), data


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_a_distillation_token_learns_from_the_teacher_alone(student, kind):
    made, data = taught_by_token(student, kind=kind, tau=2.0, alpha=0.3, label_smoothing=0.1)
    with torch.no_grad():
        (first, second), theirs = student(data.images, heads="each"), made.teacher(data.images)
    wanted = 0.7 * F.cross_entropy(first, data.targets, label_smoothing=0.1)
    if kind == "hard":
        wanted += 0.3 * F.cross_entropy(second, theirs.argmax(1))
    else:
        p, q = (theirs / 2).softmax(1), (second / 2).softmax(1)
        wanted += 0.3 * (p * (p.log() - q.log())).sum() * 4 / second.numel()
    torch.testing.assert_close(made.step(data, START)["loss"].detach(), wanted)


@pytest.mark.parametrize(
    ("alpha", "idle", "learning"), [(0.0, "head_dist", "head"), (1.0, "head", "head_dist")]
)
def test_each_head_has_one_source(student, alpha, idle, learning):
    made, data = taught_by_token(student, alpha=alpha)
    made.step(data, START)["loss"].backward()
    assert not getattr(student, idle).weight.grad.any()
    assert getattr(student, learning).weight.grad.any()


def test_the_mean_of_both_heads_is_scored(student):
    made, data = taught_by_token(student)
    with torch.no_grad():
        first, second = made.eval().model(data.images, heads="each")
        found = scored(made, [data]).values
    wanted = F.cross_entropy((first + second) / 2, data.targets)
    assert found["loss"] == pytest.approx(wanted.item(), abs=1e-6)


def test_the_teacher_stays_as_it_is_and_out_of_sight():
    made = task()
    before = {name: value.clone() for name, value in made.teacher.state_dict().items()}
    optimizer = optim.build(made, optim.OptimConfig(lr=0.1, lr_batch=0))
    made.train().step(batch(), START)["loss"].backward()
    optimizer.step()
    assert not made.teacher.training
    assert all(torch.equal(value, before[name]) for name, value in made.teacher.state_dict().items())
    assert not any(p.requires_grad for p in made.teacher.parameters())
    mine = {id(p) for p in made.parameters()} | {id(m) for m in made.modules()}
    assert not mine & {id(x) for x in (*made.teacher.parameters(), *made.teacher.modules())}
    assert set(made.state_dict()) == {f"model.{n}" for n in made.model.state_dict()} | {"teacher_sha256"}


def test_the_teacher_follows_the_task():
    made = task().to(torch.float64)
    assert {p.dtype for p in made.teacher.parameters()} == {torch.float64}


def test_another_teacher_is_noticed_when_a_run_goes_on():
    kept = task().state_dict()
    task().load_state_dict(kept)
    other = Distill(Linear(0), DistillConfig(), described(K))
    other.teach(Teacher(Linear(2), K, IMAGES), IMAGES)
    with pytest.raises(ValueError) as error:
        other.load_state_dict(kept)
    assert str(error.value) == "A resumed run keeps its teacher; the weights of this one differ."


@pytest.mark.parametrize(
    ("teacher", "config", "message"),
    [
        (Teacher(Linear(1), 7, IMAGES), {}, "The teacher has 7 classes; the data has 4."),
        (
            Teacher(Linear(1), K, Preprocess(size=224)),
            {},
            "The teacher takes 224 x 224 pixels; data.image_size is 32."
            " To use it at that size, set task.teacher_size=32.",
        ),
        (
            Teacher(Linear(1), K, Preprocess(size=32, mean=(0.5,) * 3, std=(0.5,) * 3)),
            {},
            "The teacher takes images of mean (0.5, 0.5, 0.5) and deviation (0.5, 0.5, 0.5);"
            " the data gives (0.485, 0.456, 0.406) and (0.229, 0.224, 0.225).",
        ),
    ],
    ids=["classes", "size", "colours"],
)
def test_a_teacher_that_does_not_fit(teacher, config, message):
    made = Distill(Linear(0), DistillConfig(**config), described(K))
    with pytest.raises(ValueError) as error:
        made.teach(teacher, IMAGES)
    assert str(error.value) == message


def test_the_size_of_a_teacher_can_be_declared():
    made = Distill(Linear(0), DistillConfig(teacher_size=32), described(K))
    made.teach(Teacher(Linear(1), K, Preprocess(size=224)), IMAGES)


@pytest.mark.parametrize(("library", "name"), [("torchvision", "regnet_y_400mf"), ("timm", "regnety_002")])
def test_teachers_of_other_libraries_load_from_a_file(library, name, tmp_path):
    torch.manual_seed(0)
    if library == "timm":
        theirs = pytest.importorskip("timm").create_model(name, num_classes=5)
        state = {"model": theirs.state_dict()}  # as DeiT's authors wrap it
    else:
        from torchvision.models import get_model

        theirs = get_model(name, weights=None, num_classes=5)
        state = theirs.state_dict()
    torch.save(state, tmp_path / "teacher.pth")
    teacher = load_teacher(f"{library}:{name}", str(tmp_path / "teacher.pth"))
    assert (teacher.num_classes, teacher.input.size) == (5, 224)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(teacher.module.eval()(images), theirs.eval()(images))


def test_the_teachers_of_the_papers_are_there():
    """RegNetY-16GF under both names, of the 84 M parameters that its weights have."""
    from torchvision.models import list_models

    assert "regnet_y_16gf" in list_models()
    with torch.device("meta"):
        net = pytest.importorskip("timm").create_model("regnety_160")
    assert round(sum(p.numel() for p in net.parameters()) / 1e6) == 84


@pytest.mark.parametrize(
    ("source", "weights", "message"),
    [
        (
            "timm:regnety_160",
            "",
            "A teacher needs weights: set task.teacher_weights to the file of timm:regnety_160.",
        ),
        (
            "torchvision:regnet_y_16g",
            "FILE",
            "torchvision has no model 'regnet_y_16g'. Did you mean 'regnet_y_16gf'?",
        ),
        ("timm:regnety_16", "FILE", "timm has no model 'regnety_16'. Did you mean 'regnety_160'?"),
        ("FILE", "x.pth", "task.teacher_weights goes with torchvision:NAME or timm:NAME; got 'FILE'."),
        (
            "torchvision:regnet_y_400mf",
            "FILE",
            "FILE does not fit torchvision:regnet_y_400mf: Missing key(s) in state_dict: ",
        ),
    ],
)
def test_a_teacher_that_cannot_be_had(source, weights, message, tmp_path):
    file = tmp_path / "some.pth"
    torch.save({"weight": torch.zeros(3, 2)}, file)
    with pytest.raises(ValueError) as error:
        load_teacher(source.replace("FILE", str(file)), weights.replace("FILE", str(file)))
    assert str(error.value).startswith(message.replace("FILE", str(file)))
    assert "\n" not in str(error.value)


RUN = {
    "epochs": 1,
    "task": {"name": "distill"},
    "model": {"name": "xcit_nano_12_p16", "options": {"depth": 1}},
    "data": {
        "name": "digits",
        "image_size": 32,
        "batch_size": 32,
        "options": {"fraction": 0.1},
        "workers": 0,
    },
    "optim": {"warmup_epochs": 0},
    "run": {"device": "cpu"},
}


def recipe(**task):
    table = json.loads(json.dumps(RUN))
    table["task"].update(task)
    return validated(table)


def small_teacher(folder, num_classes=10, image_size=32):
    torch.manual_seed(1)
    teacher = create_model(
        "deit_tiny", num_classes=num_classes, image_size=image_size, dim=16, num_heads=2, depth=1
    )
    save(teacher, folder / "teacher.safetensors")
    return str(folder / "teacher.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("student", ["xcit_nano_12_p16", "deit_tiny_distilled"])
def test_a_run_from_a_teacher_of_this_package(student, tmp_path):
    chosen = recipe(teacher=small_teacher(tmp_path))
    chosen = validated({**chosen.model_dump(), "model": {"name": student, "options": {"depth": 1}}})
    made = train(chosen, tmp_path / "run", reporters=[])
    assert made.steps == 4
    from tetravit.models import load
    from tetravit.runs.evaluate import evaluate

    found = load(tmp_path / "run")
    assert found.name == student
    assert not any("teacher" in name for name in found.state_dict())
    assert evaluate(tmp_path / "run", device="cpu").scores["top1"] == pytest.approx(made.best, abs=1e-6)


def test_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError) as error:
        train(recipe(), tmp_path / "run", reporters=[])
    assert str(error.value) == "The recipe lacks task.teacher."
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ({"num_classes": 7}, "The teacher has 7 classes; the data has 10."),
        (
            {"image_size": 64},
            "The teacher takes 64 x 64 pixels; data.image_size is 32."
            " To use it at that size, set task.teacher_size=32.",
        ),
    ],
    ids=["classes", "size"],
)
def test_the_command_says_in_one_line_why_a_teacher_does_not_fit(teacher, message, tmp_path, capsys):
    file, run = small_teacher(tmp_path, **teacher), tmp_path / "run"
    (tmp_path / "mine.toml").write_text(dump(recipe()))
    with pytest.raises(SystemExit) as ended:
        main(["train", str(tmp_path / "mine.toml"), f"task.teacher={file}", "--into", str(run)])
    assert (ended.value.code, capsys.readouterr().err) == (2, f"tetravit train: {message}\n")
    assert not run.exists()


def test_without_timm_its_extra_is_named(tmp_path, monkeypatch):
    torch.save({"head.weight": torch.zeros(3, 2)}, tmp_path / "some.pth")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError) as error:
        load_teacher("timm:regnety_160", str(tmp_path / "some.pth"))
    assert str(error.value) == ("The teacher timm:regnety_160 needs the extra: pip install 'tetravit[timm]'.")
