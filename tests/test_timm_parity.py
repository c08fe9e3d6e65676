"""Thirty steps of our loop beside timm's parts of training: the losses agree."""

from functools import partial

import numpy as np
import pytest
import torch
from task_toys import described
from torch import nn
from torch.nn import functional as F

from tetravit.engine import optim
from tetravit.engine.config import RunConfig
from tetravit.engine.ema import Ema
from tetravit.engine.loop import Job, fit
from tetravit.models import create_model
from tetravit.models.teacher import Teacher
from tetravit.seeds import micro_batch, number_layers
from tetravit.structures import Batch, Preprocess
from tetravit.tasks.classify import Classify, ClassifyConfig
from tetravit.tasks.distill import Distill, DistillConfig
from tetravit.weights.deit import LAYOUTS

timm_data = pytest.importorskip("timm.data")
timm_loss = pytest.importorskip("timm.loss")
timm_optim = pytest.importorskip("timm.optim")
timm_scheduler = pytest.importorskip("timm.scheduler")
timm_utils = pytest.importorskip("timm.utils")

SOFT_TARGETS = timm_loss.SoftTargetCrossEntropy()
STEPS, PER_EPOCH, BATCH, K, SMOOTHING = 30, 3, 4, 5, 0.1
EPOCHS = STEPS // PER_EPOCH
SETTINGS = optim.OptimConfig(
    lr=2e-3, lr_batch=0, warmup_epochs=5, min_lr=1e-5, clip=5.0, ema=0.9, faithful=True
)
MODELS = {
    "xcit": partial(create_model, "xcit_nano_12_p16", depth=1),
    "convit": partial(create_model, "convit_tiny", depth=2, num_gpsa=1, image_size=32),
    "gcvit": partial(create_model, "gcvit_xxtiny", depths=(1, 1, 1, 1), image_size=32),
    "twins": partial(create_model, "twins_svt_small", depths=(1, 1, 1, 1)),
}

# The partner of timm's image i is image BATCH - 1 - i; ours is i + BATCH / 2.
ORDER = torch.cat((torch.arange(BATCH // 2), torch.arange(BATCH // 2, BATCH).flip(0)))


def batches():
    generator = torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        yield (
            torch.randn(BATCH, 3, 32, 32, generator=generator),
            torch.randint(K, (BATCH,), generator=generator),
        )


class Loader:
    steps_per_epoch = PER_EPOCH

    def batches(self, start):
        for images, labels in batches():
            yield [Batch(images, labels, names=[""] * BATCH)]


def blend(step):
    """The share of the first image in step `step`, for both sides."""
    return float(np.random.default_rng(step).beta(0.8, 0.8))


class Watched:
    """Mixes by the shares of `blend`; keeps every loss."""

    def __init__(self, model, config):
        super().__init__(model, config, described(K))
        self.losses = []

    def mixed(self, batch):
        from tetravit.data.transforms.mixup import MixUp, partners, soft_targets

        share = blend(len(self.losses))
        images, share = MixUp(0.8)(batch.images, share, np.random.default_rng(0))
        targets = soft_targets(batch.targets, K, SMOOTHING)
        return images, targets * share + partners(targets) * (1 - share)

    def step(self, batch, progress):
        values = super().step(batch, progress)
        self.losses.append(values["loss"].item())
        return values


class WatchedClassify(Watched, Classify):
    pass


class WatchedDistill(Watched, Distill):
    pass


def ours(task):
    ema = Ema(task.model, SETTINGS.ema, warmup=False)
    job = Job(
        task=task,
        loader=Loader(),
        optimizer=optim.build(task, SETTINGS),
        rate=SETTINGS.rate(epochs=EPOCHS, steps_per_epoch=PER_EPOCH, batch_size=BATCH),
        total_steps=STEPS,
        config=RunConfig(device="cpu"),
        clip=SETTINGS.clip,
        ema=ema,
    )
    fit(job)
    return task.losses, ema.state()


def theirs(model, criterion=lambda model, images, targets: SOFT_TARGETS(model(images), targets)):
    """The loop of the authors' main.py, out of timm's parts."""
    skipped = model.no_weight_decay()
    model.no_weight_decay = lambda: skipped
    optimizer = timm_optim.create_optimizer_v2(
        model, opt="adamw", lr=SETTINGS.lr, weight_decay=SETTINGS.weight_decay, eps=1e-8, betas=(0.9, 0.999)
    )
    schedule = timm_scheduler.CosineLRScheduler(
        optimizer, t_initial=EPOCHS, lr_min=1e-5, warmup_t=5, warmup_lr_init=1e-6
    )
    average = timm_utils.ModelEmaV2(model, decay=SETTINGS.ema)
    mixup = timm_data.Mixup(mixup_alpha=0.8, cutmix_alpha=0.0, label_smoothing=SMOOTHING, num_classes=K)
    losses, slots = [], number_layers(model)
    model.train()
    for step, (images, labels) in enumerate(batches()):
        mixup._params_per_batch = lambda step=step: (blend(step), False)
        # timm makes its targets on the device it is told, and mixes the images in place
        images, targets = (x[ORDER] for x in mixup(images[ORDER], labels[ORDER]))
        with micro_batch(0, step, rows=BATCH, slots=slots):
            loss = criterion(model, images, targets)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), SETTINGS.clip)
        optimizer.step()
        average.update(model)
        if (step + 1) % PER_EPOCH == 0:
            schedule.step(step // PER_EPOCH)
    return losses, average.module.state_dict()


@pytest.mark.parametrize(
    "family", [pytest.param(f, marks=[] if f == "xcit" else [pytest.mark.slow]) for f in MODELS]
)
def test_thirty_steps_agree_with_timm(family):
    made = []
    for _ in range(2):
        torch.manual_seed(1)
        made.append(MODELS[family](num_classes=K, drop_path=0.1))
    our_losses, our_average = ours(WatchedClassify(made[0], ClassifyConfig(label_smoothing=SMOOTHING)))
    their_losses, their_average = theirs(made[1])
    assert len(our_losses) == STEPS
    assert our_losses[-1] != our_losses[0]
    np.testing.assert_allclose(our_losses, their_losses, rtol=0, atol=1e-5)
    # Biases of keys have no gradient but rounding noise, which Adam turns into steps: matrices are compared.
    matrices = {name: value for name, value in their_average.items() if value.ndim > 1}
    for name, value in matrices.items():
        torch.testing.assert_close(our_average[name], value, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_thirty_steps_with_a_distillation_token_agree_with_timm(kind):
    """Their model with its two heads, and the loss of the DeiT release."""
    torch.manual_seed(1)
    student = create_model("deit_tiny_distilled", num_classes=K, image_size=32, depth=1, dim=48)
    twin = pytest.importorskip("timm").create_model(
        "deit_tiny_distilled_patch16_224", num_classes=K, img_size=32, depth=1, embed_dim=48
    )
    twin.load_state_dict(LAYOUTS["deit"]["timm"].to_theirs(student.state_dict()))
    twin.set_distilled_training(True)
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, K))

    def criterion(model, images, targets):
        logits, taught = model(images)
        with torch.no_grad():
            answers = teacher(images)
        if kind == "hard":
            teaching = F.cross_entropy(taught, answers.argmax(1))
        else:
            both = (F.log_softmax(x / 2, dim=1) for x in (taught, answers))
            teaching = F.kl_div(*both, reduction="sum", log_target=True) * 4 / taught.numel()
        return 0.5 * SOFT_TARGETS(logits, targets) + 0.5 * teaching

    task = WatchedDistill(student, DistillConfig(kind=kind, tau=2.0, label_smoothing=SMOOTHING))
    task.teach(Teacher(teacher, K, Preprocess(size=32)), Preprocess(size=32))
    our_losses, _ = ours(task)
    their_losses, _ = theirs(twin, criterion)
    assert our_losses[-1] != our_losses[0]
    np.testing.assert_allclose(our_losses, their_losses, rtol=0, atol=1e-5)
