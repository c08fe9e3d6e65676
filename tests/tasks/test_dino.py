"""The task `dino`: four steps equal the authors' loop, and its step does not depend on how a batch is divided."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from selfsup import inputs
from selfsup.answers import check, golden, meta, names, tensors

from tetravit.backbones.xcit import XCiT
from tetravit.data.datasets.base import DatasetInfo
from tetravit.engine import optim
from tetravit.engine.clipping import clipped
from tetravit.engine.optim import OptimConfig
from tetravit.engine.schedule import dino_table
from tetravit.models.classifier import Classifier
from tetravit.structures import Batch
from tetravit.tasks.base import Progress
from tetravit.tasks.dino import Dino, DinoConfig, settled
from tetravit.weights.xcit import LAYOUTS

DATA = DatasetInfo("classify", 10, tuple("0123456789"))
ARGS = meta()["x_args"]
MAP = LAYOUTS["xcit"]["official"]


def split(state):
    """The authors' tensors of one network -> ours of the backbone, those of the head."""
    backbone = {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}
    head = {k.removeprefix("head."): v for k, v in state.items() if k.startswith("head.")}
    return MAP.to_ours(backbone), head


def toy(dim=32, depth=2):
    return Classifier(XCiT(patch_size=8, dim=dim, depth=depth, num_heads=4), 0)


def authors_task(last):
    config = DinoConfig(
        prototypes=ARGS["prototypes"],
        hidden=ARGS["hidden"],
        bottleneck=ARGS["bottleneck"],
        last=last,
        teacher_temp=tuple(ARGS["teacher_temp"][:2]),
        teacher_temp_epochs=ARGS["teacher_temp"][2],
        momentum=tuple(ARGS["momentum"]),
        freeze_last_layer=ARGS["freeze_last_layer"],
        local_views=ARGS["locals"],
    )
    task = Dino(toy(ARGS["embed_dim"], ARGS["depth"]), config, DATA)
    backbone, head = split(tensors(inputs.state("train.", meta()["x_keys"])))
    for model, its_head in ((task.model, task.head), (task.teacher, task.teacher_head)):
        model.load_state_dict(backbone)
        its_head.load_state_dict(head)
    return task.train()


def batch_of(crops):
    first, *others = map(torch.from_numpy, crops)
    return Batch(first, views=[Batch(view) for view in others])


def theirs(task, who):
    """All tensors of the student ("s") or the teacher ("t") under the authors' names."""
    model, head = (task.model, task.head) if who == "s" else (task.teacher, task.teacher_head)
    state = {f"backbone.{k}": v for k, v in MAP.to_theirs(model.state_dict()).items()}
    return state | {f"head.{k}": v for k, v in head.state_dict().items()}


@pytest.mark.parametrize(("name", "last"), [("sgd", "free"), ("adamw", "normed")])
def test_four_steps_are_the_authors(name, last):
    task = authors_task(last)
    total, per_epoch = ARGS["epochs"] * ARGS["steps_per_epoch"], ARGS["steps_per_epoch"]
    settings = OptimConfig(name=name, weight_decay=ARGS["wd"][0], lr=1.0)
    optimizer = optim.build(task, settings)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    caught = {}
    task.head.register_forward_hook(lambda m, i, out: caught.__setitem__("student", out.detach()))
    task.teacher_head.register_forward_hook(lambda m, i, out: caught.__setitem__("teacher", out))
    for i, recorded in enumerate(meta()[f"x_{name}"]):
        progress = Progress(i, total, per_epoch)
        warmup = ARGS["warmup_epochs"] * per_epoch
        lr = dino_table(i, total=total, warmup=warmup, peak=ARGS["lr"][name], floor=ARGS["min_lr"])
        decay = dino_table(i, total=total, warmup=0, peak=ARGS["wd"][0], floor=ARGS["wd"][1])
        assert lr == pytest.approx(recorded["lr"], rel=1e-6)
        assert decay == pytest.approx(recorded["wd"])
        assert task.teacher_momentum(progress) == pytest.approx(recorded["momentum"])
        optim.set_values(optimizer, lr, {"weight_decay": decay})
        loss = task(batch_of(inputs.crops(i, local_views=ARGS["locals"])), progress)["loss"]
        loss.backward()
        gradients = [p.grad for p in parameters if p.grad is not None]
        clipped(parameters, gradients, ARGS["clip"], "each", [list(g) for g in task.joint_clip()])
        task.before_update(progress)
        optimizer.step()
        optimizer.zero_grad()
        task.after_update(progress, torch.tensor(True))
        assert loss.item() == pytest.approx(recorded["loss"], rel=2e-5)
        check(f"x_{name}_teacher_out{i}", caught["teacher"])
        check(f"x_{name}_student_out{i}", caught["student"])
        check(f"x_{name}_center{i}", task.center)
        for who in "st":
            state = theirs(task, who)
            prefix = f"x_{name}_{who}{i}:"
            for key in names(prefix):
                value = state[key.removeprefix(prefix)]
                statistic = key.endswith(("running_mean", "running_var"))
                check(key, value if statistic else value.flatten()[::5])
    task.eval()
    with torch.no_grad():
        check(f"x_{name}_teacher_eval", task.teacher(torch.from_numpy(inputs.eval_images())))


def test_groups_are_the_authors():
    task = authors_task("normed")
    groups = optim.build(task, OptimConfig(weight_decay=0.04)).param_groups
    named = {p: n.removeprefix("model.") for n, p in task.named_parameters()}
    ours = [{named[p] for p in group["params"]} for group in groups]
    for mine, wanted in zip(ours, meta()["param_groups"], strict=True):
        shapes = {k: np.zeros(s, np.float32) for k, s in meta()["x_keys"].items() if k in wanted}
        backbone, head = split(tensors(shapes))
        assert mine == {*backbone, *(f"head.{k}" for k in head)}
    assert [group["weight_decay"] for group in groups] == [0.04, 0.0]


@pytest.mark.parametrize("table", ["lr", "wd", "mom"])
def test_tables(table):
    warm, ends = {"lr": (3, (0.002, 1e-5)), "wd": (0, (0.04, 0.4)), "mom": (0, (0.996, 1.0))}[table]
    values = [dino_table(i, total=56, warmup=7 * warm, peak=ends[0], floor=ends[1]) for i in range(56)]
    np.testing.assert_allclose(values, golden(f"sched_{table}").numpy(), rtol=1e-9, atol=1e-12)


def test_clipping_and_the_frozen_last_layer():
    gradients = {k: torch.from_numpy(g) for k, g in inputs.clip_gradients().items()}
    parameters = {k: torch.nn.Parameter(torch.zeros_like(g)) for k, g in gradients.items()}
    for key, parameter in parameters.items():
        parameter.grad = gradients[key].clone()
    norms = [g.norm().item() for g in gradients.values()]
    assert norms == pytest.approx(meta()["clip_norms_before"])
    clipped(list(parameters.values()), [p.grad for p in parameters.values()], meta()["clip"], "each")
    for key in gradients:
        check(f"clip_{key}", parameters[key].grad)


def small(**changes):
    """A task without BatchNorm, so that a batch may be divided."""
    torch.manual_seed(0)
    config = DinoConfig(
        **{"prototypes": 12, "hidden": 16, "bottleneck": 8, "local_views": 2, "last": "free", **changes}
    )
    from tetravit.backbones.deit import DeiT

    backbone = DeiT(image_size=32, patch_size=16, dim=16, depth=1, num_heads=2)
    return Dino(Classifier(backbone, 0), config, DATA).train()


def random_views(images, count=4, seed=1):
    g = torch.Generator().manual_seed(seed)
    views = [torch.randn(images, 3, 32, 32, generator=g) for _ in range(count)]
    return Batch(views[0], views=[Batch(view) for view in views[1:]])


def part(batch, rows):
    return Batch(batch.images[rows], views=[Batch(view.images[rows]) for view in batch.views])


def stepped(task, micros):
    """Gradients of a step over micro-batches; the centre and the teacher have moved."""
    progress = Progress(0, 10, 5)
    for micro in micros:
        (task(micro, progress)["loss"] / len(micros)).backward()
    gradients = {n: p.grad.clone() for n, p in task.named_parameters() if p.grad is not None}
    with torch.no_grad():
        for p in task.parameters():
            if p.grad is not None:
                p -= 0.1 * p.grad
    task.after_update(progress, torch.tensor(True))
    return gradients


def test_micro_batches_make_the_step_of_the_whole_batch():
    batch = random_views(4)
    whole, parts = small(), small()
    one = stepped(whole, [batch])
    two = stepped(parts, [part(batch, slice(0, 2)), part(batch, slice(2, 4))])
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=2e-6, rtol=2e-5)
    torch.testing.assert_close(whole.state_dict(), parts.state_dict(), atol=2e-6, rtol=2e-5)


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_views_in_groups_make_the_same_step(at_once):
    batch = random_views(3)
    whole, groups = small(), small(views_at_once=at_once)
    groups.loss_scale = torch.tensor(1024.0)
    one, two = stepped(whole, [batch]), stepped(groups, [batch])
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=2e-6, rtol=2e-5)


def test_a_bad_step_moves_neither_teacher_nor_centre():
    task = small()
    before = {k: v.clone() for k, v in task.state_dict().items()}
    progress = Progress(0, 10, 5)
    batch = random_views(2)
    batch.images[0, 0, 0, 0] = float("nan")
    task(batch, progress)
    task.after_update(progress, torch.tensor(False))
    torch.testing.assert_close(task.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    task = small()
    with torch.autocast("cpu", dtype):
        loss = task(random_views(2), Progress(0, 10, 5))["loss"]
    loss.backward()
    assert loss.dtype == task.center.dtype == task.pending.dtype == torch.float32
    assert all(p.grad.isfinite().all() for p in task.parameters() if p.grad is not None)


def test_the_teacher_starts_as_the_student_and_keeps_every_branch():
    backbone = XCiT(patch_size=8, dim=32, depth=1, num_heads=4, drop_path=0.5)
    config = DinoConfig(prototypes=8, hidden=8, bottleneck=4)
    task = Dino(Classifier(backbone, 0), config, DATA)
    torch.testing.assert_close(task.teacher.state_dict(), task.model.state_dict())
    assert task.teacher.backbone.blocks[0].drop_path.rate == 0.0
    assert task.model.backbone.blocks[0].drop_path.rate == 0.5
    assert not any(p.requires_grad for m in (task.teacher, task.teacher_head) for p in m.parameters())
    assert task.weights() is task.teacher


def test_measures_of_a_collapse():
    task = small(prototypes=4)
    K, C = 4, 16
    one = torch.zeros(2, 8, K)
    one[..., 0] = 1
    spread = torch.eye(K).repeat(2, 2, 1)
    z = torch.randn(8, C)
    for targets, entropy, information in (
        (torch.full((2, 8, K), 1 / K), np.log(K), 0.0),
        (one, 0.0, 0.0),
        (spread, 0.0, np.log(K)),
    ):
        task.pending.zero_()
        task._count(torch.zeros(16, K), targets, z)
        task.after_update(Progress(0, 10, 5), torch.tensor(True))
        values = task.log_values(Progress(9, 10, 5))
        assert values["teacher_entropy"] == pytest.approx(entropy, abs=1e-5)
        assert values["information"] == pytest.approx(information, abs=1e-5)
        assert values["agreement"] == pytest.approx(1.0)
        assert 0 < values["feature_spread"] <= 1


def test_a_collapse_is_reported_once_after_five_lines():
    task, texts = small(prototypes=4), []
    for line in range(8):
        task._count(torch.zeros(4, 4), torch.full((2, 2, 4), 0.25), torch.randn(2, 16))
        task.after_update(Progress(line, 8, 1), torch.tensor(True))
        texts.append(task.alarm(task.log_values(Progress(line, 8, 1))))
    said = [text for text in texts if text]
    assert said == [
        "The teacher has collapsed: every prototype is as likely (information 0 of at most 1.39, entropy 1.39)."
        " Try: a lower task.teacher_temp."
    ]


@pytest.mark.parametrize(
    ("images", "prototypes", "temp", "momentum"),
    [
        (4_000, 1024, (0.02, 0.02), 0.99),
        (300, 300, (0.02, 0.02), 0.99),
        (1_281_167, 65536, (0.04, 0.07), 0.996),
    ],
)
def test_settings_by_the_number_of_images(images, prototypes, temp, momentum):
    config = settled(DinoConfig(prototypes="auto", teacher_temp="auto", momentum="auto"), images)
    assert config.prototypes == prototypes
    assert config.teacher_temp == pytest.approx(temp)
    assert config.momentum == pytest.approx((momentum, 1.0))


def test_temperature_reaches_its_end_in_the_last_epoch_of_the_warm_up():
    task = SimpleNamespace(config=DinoConfig(teacher_temp=(0.04, 0.07), teacher_temp_epochs=4))
    temps = [Dino.temperature(task, Progress(5 * e, 50, 5)) for e in range(6)]
    assert temps == pytest.approx([0.04, 0.05, 0.06, 0.07, 0.07, 0.07])
    task.config = DinoConfig(teacher_temp=(0.04, 0.07), teacher_temp_epochs="auto")
    temps = [Dino.temperature(task, Progress(5 * e, 50, 5)) for e in range(4)]  # 3 of 10 epochs
    assert temps == pytest.approx([0.04, 0.055, 0.07, 0.07])
    temps = [Dino.temperature(task, Progress(e, 1000, 1)) for e in (0, 28, 29)]  # 30 of 1,000
    assert temps[0] == pytest.approx(0.04)
    assert temps[1] < temps[2] == pytest.approx(0.07)


@pytest.mark.parametrize(
    ("momentum", "batch", "steps", "first"),
    [
        ("auto", 256, 100_001, 0.9995),
        ("auto", 257, 100_001, 0.99),
        ("auto", 256, 100_000, 0.99),
        ((0.99, 1.0), 256, 100_001, 0.99),
    ],
)
def test_momentum_of_long_runs_on_small_batches(momentum, batch, steps, first):
    task = small(momentum=momentum)
    task.batch_size = batch
    assert task.teacher_momentum(Progress(0, steps, 100)) == pytest.approx(first)
    assert task.teacher_momentum(Progress(steps, steps, 100)) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"teacher_temp": (0.04, 0.2)},
            "task.teacher_temp is at most task.student_temp, 0.1, so that the teacher's targets are sharper"
            " than the student's; got [0.04, 0.2].",
        ),
        ({"teacher_temp": (0.0, 0.04)}, "task.teacher_temp is above 0; got [0.0, 0.04]."),
        ({"momentum": (0.9, 1.1)}, "task.momentum is between 0 and 1; got [0.9, 1.1]."),
        ({"prototypes": 0}, "task.prototypes is at least 1; got 0."),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(ValueError) as error:
        DinoConfig(**options)
    assert message in str(error.value)


def test_a_model_with_classes():
    with pytest.raises(ValueError) as error:
        Dino(Classifier(XCiT(dim=32, depth=1, num_heads=4), 10), DinoConfig(prototypes=8), DATA)
    assert str(error.value) == "DINO trains embeddings, num_classes=0; got a model with 10 classes."


def test_one_image():
    with pytest.raises(ValueError) as error:
        Dino(toy(), DinoConfig(prototypes="auto"), DatasetInfo("unlabelled", 0, (), count=1))
    assert str(error.value) == "Self-supervised training needs two images or more; got 1."


def test_more_prototypes_than_make_sense():
    with pytest.raises(ValueError) as error:
        settled(DinoConfig(), 1000)
    assert str(error.value) == (
        "task.prototypes is 65536 for 1000 training images, of which most would never be used; at most 4000, or"
        ' "auto": 1000.'
    )


def test_one_view():
    with pytest.raises(ValueError) as error:
        small()(Batch(torch.zeros(2, 3, 32, 32)), Progress(0, 10, 5))
    assert str(error.value) == "DINO trains on two views of each image or more; got 1."
