"""DINO: self-distillation without labels (Caron et al. 2021, arXiv:2104.14294), for every family.

The student gets several views of each image, the teacher only the two global ones. The teacher is an EMA of the
student; its logits over prototypes, centred and sharpened, are the targets of the student's other views.

Unlike in the authors' code, centre and teacher are updated only after good steps, and the centre once per step, by
the mean over all ranks and micro-batches. Stochastic depth is off in the teacher. Both networks stay in training
mode: BatchNorm uses batch statistics in the teacher too, and the teacher has its own running statistics, of global
views only.

One file: the section of a recipe, the step and the updates after it are one method. The loss is `parts/dino_loss.py`.

Shapes: B images, V views, K prototypes, C width of the embedding.
Source: facebookresearch/dino@7c446df main_dino.py, utils.py.
"""

import copy
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
import torch.distributed as dist
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from tetravit.data.augment import parse
from tetravit.data.config import DataConfig
from tetravit.data.datasets.base import Dataset, DatasetInfo
from tetravit.heads.project import ProjectionHead
from tetravit.layers.class_attention import ClassAttention
from tetravit.layers.drop_path import DropPath
from tetravit.models import create_model
from tetravit.seeds import views as numbered_views
from tetravit.structures import Batch
from tetravit.tasks.base import Progress, Task, TaskConfig
from tetravit.tasks.parts.dino_loss import GLOBALS, assignments, dino_loss, new_center, views_loss
from tetravit.tasks.parts.groups import summed
from tetravit.weights.fileformat import BadFile
from tetravit.weights.read import load_into
from tetravit.weights.selfsup import read_full

CROP = "crop(scale=(0.4, 1.0)) | flip | jitter(0.8) | gray(0.2)"
LOCAL = "crop(96, (0.05, 0.4)) | flip | jitter(0.8) | gray(0.2) | blur(0.5)"
COLLAPSED = 0.02  # threshold on information, as a share of its bound
LINES = 5  # consecutive log lines before a collapse is reported
GRACE = (
    0.1  # initial share of the run, at least an epoch, without collapse detection: information starts at 0
)
MOST = 4  # prototypes per training image
TEMP_EPOCHS, TEMP_SHARE = 30, 0.3  # temperature warm-up: epochs, and maximum share of the run
SLOW, SMALL_BATCH, MANY_STEPS = 0.9995, 256, 100_000  # momentum for small batches of large sets (dino#104)

# (lightly-train, by the number of images): prototypes up to so many images.
PROTOTYPES = ((20_000, 1024), (50_000, 2048), (100_000, 4096), (200_000, 16384), (500_000, 32768))


class DinoConfig(TaskConfig):
    """The `[task]` section for DINO."""

    name: Literal["dino"] = "dino"
    prototypes: int | Literal["auto"] = Field(
        default=65536, description="K, width of the head's output; auto: by the number of training images."
    )
    hidden: int = Field(default=2048, ge=1, description="Width of the head's hidden layers.")
    bottleneck: int = Field(default=256, ge=1, description="Width before the head's last layer.")
    layers: int = Field(default=3, ge=1, description="Linear layers of the head's MLP.")
    norm: Literal["none", "batch"] = Field(default="none", description="BatchNorm in the head's MLP.")
    last: Literal["normed", "free"] = Field(
        default="normed",
        description="normed: rows of the last layer have norm 1; free: their norms are trained, which is better for"
        " small models and less stable.",
    )
    checkpoint: str = Field(
        default="",
        description="A full checkpoint of the DINO code or of VISSL to continue from: student, teacher, both heads"
        " and the centre. Use a small learning rate, with momentum and temperatures at their final values.",
    )
    student_temp: float = Field(default=0.1, gt=0, description="Temperature of the student.")
    teacher_temp: tuple[float, float] | Literal["auto"] = Field(
        default=(0.04, 0.04),
        description="Temperature of the teacher, at the start and after teacher_temp_epochs; auto: by the number of"
        " training images.",
    )
    teacher_temp_epochs: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        default=0,
        description="Epochs of the teacher's temperature warm-up; auto: 30, at most 30 % of the run.",
    )
    teacher_temp_by: Literal["epoch", "step"] = Field(
        default="epoch", description="Whether the teacher's temperature changes per epoch or per step."
    )
    momentum: tuple[float, float] | Literal["auto"] = Field(
        default=(0.996, 1.0),
        description="Momentum of the teacher, at the start and at the end, along half a cosine; auto: by the number"
        " of training images, 0.9995 for batches up to 256 in runs of over 100,000 steps.",
    )
    center_momentum: float = Field(default=0.9, ge=0, lt=1, description="Momentum of the centre.")
    freeze_last_layer: int = Field(
        default=1, ge=0, description="Initial epochs with a frozen last layer of the head."
    )
    global_views: tuple[str, str] = Field(
        default=(f"{CROP} | blur(1.0)", f"{CROP} | blur(0.1) | solarize(0.2)"),
        description="Augmentations of the two global views, inputs of teacher and student.",
    )
    local_view: str = Field(
        default=LOCAL, description="Augmentation of the local views, inputs of the student only."
    )
    local_views: int = Field(default=8, ge=0, description="Number of local views of each image.")
    views_at_once: int = Field(
        default=0,
        ge=0,
        description="Student views whose activations are in memory together; 0: all. Each group has its own"
        " BatchNorm statistics.",
    )

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if isinstance(self.prototypes, int) and self.prototypes < 1:
            raise ValueError(f"task.prototypes is at least 1; got {self.prototypes}.")
        if self.teacher_temp != "auto":
            if min(self.teacher_temp) <= 0:
                raise ValueError(f"task.teacher_temp is above 0; got {list(self.teacher_temp)}.")
            if max(self.teacher_temp) > self.student_temp:
                raise ValueError(
                    f"task.teacher_temp is at most task.student_temp, {self.student_temp:g}, so that the teacher's"
                    f" targets are sharper than the student's; got {list(self.teacher_temp)}."
                )
        if self.momentum != "auto" and not all(0 <= m <= 1 for m in self.momentum):
            raise ValueError(f"task.momentum is between 0 and 1; got {list(self.momentum)}.")
        for text in (*self.global_views, self.local_view):
            parse(text, size=1)
        return self


class Dino(Task):
    """Train a backbone without labels.

    model, head: the student. teacher, teacher_head: its EMA, without gradients. center (1, K): moving average of the
    teacher's logits.

    Raises:
        ValueError: if the model has classes, there is one image, or there are far more prototypes than images.
    """

    Config = DinoConfig
    data_kinds = ("classify", "unlabelled")
    protocol = "knn"
    config: DinoConfig
    center: Tensor
    window: Tensor
    low_lines: Tensor
    pending: Tensor

    def __init__(self, model: nn.Module, config: DinoConfig, data: DatasetInfo) -> None:
        auto_momentum = config.momentum == "auto"
        if data.count == 1:
            raise ValueError("Self-supervised training needs two images or more; got 1.")
        config = settled(config, data.count)
        super().__init__(model, config, data)
        if getattr(model, "num_classes", 0):
            raise ValueError(
                f"DINO trains embeddings, num_classes=0; got a model with {model.num_classes} classes."
            )
        backbone: Any = getattr(model, "backbone", model)
        dim: int = backbone.embed_dim
        self.image_size = 224  # pixels; for views whose augmentation has no size
        self.batch_size = 0  # global batch size; 0: unknown
        self.auto_momentum = auto_momentum
        assert isinstance(config.prototypes, int)
        self.head = ProjectionHead(
            dim,
            config.prototypes,
            hidden=config.hidden,
            bottleneck=config.bottleneck,
            layers=config.layers,
            norm=config.norm,
            last=config.last,
        )
        self.teacher = copy.deepcopy(model).requires_grad_(False)
        self.teacher_head = copy.deepcopy(self.head).requires_grad_(False)
        for module in self.teacher.modules():
            if isinstance(module, DropPath):
                module.rate = 0.0
        K = config.prototypes
        self._sizes = (K, dim, dim, 3)
        self.register_buffer("center", torch.zeros(1, K))
        # Sums since the last log line: assignments, embeddings, their squares, and counts.
        self.register_buffer("window", torch.zeros(K + 2 * dim + 3))
        self.register_buffer("low_lines", torch.zeros((), dtype=torch.int64))
        # Sums of the current step, to be added to those of the window: the teacher's mean logits come first.
        self.register_buffer("pending", torch.zeros(2 * K + 2 * dim + 4), persistent=False)

    @classmethod
    def create(cls, name: str, *, data: DatasetInfo, **model_options: Any) -> nn.Module:
        return create_model(name, num_classes=0, **model_options)

    def prepare(self, data: DataConfig) -> None:
        super().prepare(data)
        self.image_size, self.batch_size = max(data.sides), data.batch_size
        if data.repeats > 1:
            raise ValueError(f"DINO uses each image once per epoch; got data.repeats={data.repeats}.")
        if self.config.checkpoint:
            self.continue_from(self.config.checkpoint)
        if data.batch_size < 2 and self.config.norm == "batch":
            raise ValueError("BatchNorm in the head needs data.batch_size from 2 up; got 1.")

    @torch.no_grad()
    def continue_from(self, path: str | Path) -> None:
        """Load both networks, both heads and the centre of a full checkpoint of the authors' code, or of VISSL.

        Raises:
            BadFile: if the file is not such a checkpoint, or is of another architecture or head.
        """
        full = read_full(path)
        pairs = ((self.model, self.head, full.student), (self.teacher, self.teacher_head, full.teacher))
        for model, head, network in pairs:
            load_into(model, network.backbone, verify=False)
            for name, value in head.state_dict().items():
                theirs = network.head.get(name)
                if theirs is None or theirs.shape != value.shape:
                    have = "none" if theirs is None else "x".join(map(str, theirs.shape))
                    raise BadFile(
                        f"{path} has another projection head: {name} is {have}, the recipe's"
                        f" {'x'.join(map(str, value.shape))}. See task.prototypes, hidden, bottleneck, layers, norm."
                    )
            head.load_state_dict(network.head)
        if full.center is not None:
            self.center.copy_(full.center)

    def data_notes(self, dataset: Dataset) -> list[str]:
        """A note if the first image is smaller than the largest view, to which its crops are enlarged."""
        try:
            height, width = dataset[0].image.shape[-2:]
        except (ValueError, OSError, IndexError):
            return []  # the loader reports unreadable images
        side = max(_side(text) or self.image_size for text in self.views())
        if min(height, width) >= side:
            return []
        return [
            f"the first training image has {height} x {width} pixels, the largest view {side} x {side}: crops are"
            " enlarged"
        ]

    def views(self) -> Sequence[str]:
        config = self.config
        return (*config.global_views, *[config.local_view] * config.local_views)

    def weights(self) -> nn.Module:
        return self.teacher

    def parameter_groups(self, settings: Any) -> list[dict[str, Any]] | None:
        """The authors' two groups: no weight decay on biases and other 1-D parameters.

        `optim.decay = "all"`, `layer_decay` and `rates` work as in every task.
        """
        if settings.decay == "all" or settings.layer_decay != 1.0 or settings.rates:
            return None
        named = [(n, p) for n, p in self.named_parameters() if p.requires_grad]
        plain = [p for n, p in named if n.endswith(".bias") or p.ndim == 1]
        ids = set(map(id, plain))
        decayed = [p for _, p in named if id(p) not in ids]
        return [
            {"params": decayed, "weight_decay": settings.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]

    def joint_clip(self) -> Sequence[Sequence[Tensor]]:
        """Queries, keys and values of class attention, which are one parameter in the authors' module."""
        layers = [m for m in self.model.modules() if isinstance(m, ClassAttention)]
        return [
            [getattr(layer.q, kind), getattr(layer.kv, kind)]
            for layer in layers
            for kind in ("weight", "bias")
            if getattr(layer.q, kind) is not None
        ]

    def temperature(self, progress: Progress) -> float:
        """The teacher's temperature: linear, its last value is reached in epoch teacher_temp_epochs - 1."""
        (first, last), wanted = pair(self.config.teacher_temp), self.config.teacher_temp_epochs
        most = TEMP_SHARE * progress.total_steps / progress.steps_per_epoch
        epochs = min(TEMP_EPOCHS, int(most)) if wanted == "auto" else wanted
        at, count = progress.epoch, epochs
        if self.config.teacher_temp_by == "step":
            at, count = progress.step, epochs * progress.steps_per_epoch
        if at >= count:
            return last
        return first + (last - first) * at / max(1, count - 1)

    def teacher_momentum(self, progress: Progress) -> float:
        """The teacher's momentum after a step: half a cosine from first to last."""
        first, last = pair(self.config.momentum)
        if self.auto_momentum and 0 < self.batch_size <= SMALL_BATCH and progress.total_steps > MANY_STEPS:
            first = SLOW
        share = progress.step / progress.total_steps
        return last + 0.5 * (first - last) * (1 + math.cos(math.pi * share))

    def step(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        views = [batch.images, *(view.images for view in batch.views)]
        if len(views) < GLOBALS:
            raise ValueError(f"DINO trains on two views of each image or more; got {len(views)}.")
        temp = self.temperature(progress)
        with torch.no_grad():
            embeddings = _embedded(self.teacher, views[:GLOBALS])
            logits = self.teacher_head(embeddings)  # (2 B, K)
            targets = assignments(logits, self.center, temp)
            self._count(logits, targets, embeddings[: len(batch)])
        total, student_temp = len(views), self.config.student_temp
        at_once = self.config.views_at_once or total

        def part(first: int) -> Tensor:
            some = views[first : first + at_once]
            rows = self.head(_embedded(self.model, some, first)).unflatten(0, (len(some), -1))
            return views_loss(rows, targets, first=first, total=total, student_temp=student_temp)

        parameters = [p for module in (self.model, self.head) for p in module.parameters() if p.requires_grad]
        scale = self.center.new_ones(()) if self.loss_scale is None else self.loss_scale
        parts = [partial(part, first) for first in range(0, total, at_once)]
        return {"loss": summed(parts, parameters, scale)}

    def before_update(self, progress: Progress) -> None:
        if progress.epoch < self.config.freeze_last_layer:
            for parameter in self.head.last_layer.parameters():
                parameter.grad = None

    @torch.no_grad()
    def after_update(self, progress: Progress, good: Tensor) -> None:
        pending = self.pending
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(pending)
        parts = pending[-1].clamp(min=1)
        K = self.center.shape[1]
        keep = self.config.center_momentum
        moved = self.center * keep + (pending[:K] / parts) * (1 - keep)
        self.center.copy_(torch.where(good, moved, self.center))
        self.window.copy_(torch.where(good, self.window + pending[K:-1], self.window))
        share = torch.where(good, 1.0 - self.teacher_momentum(progress), 0.0)
        for slow, fast in ((self.teacher, self.model), (self.teacher_head, self.head)):
            old = [p.detach() for p in slow.parameters()]
            new = [p.detach() for p in fast.parameters()]
            change = list(torch._foreach_sub(new, old))
            torch._foreach_mul_(change, share)
            torch._foreach_add_(old, change)
        pending.zero_()

    def log_values(self, progress: Progress) -> dict[str, float]:
        """`measures` over the rows since the last log line."""
        values = measures(self.window, self.center, self._sizes)
        bound = math.log(max(2.0, min(values.pop("rows"), self.center.shape[1])))
        judged = progress.step + 1 > max(progress.steps_per_epoch, GRACE * progress.total_steps)
        low = judged and values["information"] < COLLAPSED * bound
        self.low_lines.copy_(self.low_lines + 1 if low else torch.zeros_like(self.low_lines))
        self.window.zero_()
        return values

    def alarm(self, values: dict[str, float]) -> str | None:
        if int(self.low_lines) != LINES:
            return None
        most = math.log(self.center.shape[1])
        uniform = values["teacher_entropy"] > most / 2
        kind = "every prototype is as likely" if uniform else "one prototype takes every image"
        cure = (
            "a lower task.teacher_temp"
            if uniform
            else "the centre: task.center_momentum, a higher task.teacher_temp"
        )
        return (
            f"The teacher has collapsed: {kind} (information {values['information']:.3g} of at most {most:.3g},"
            f" entropy {values['teacher_entropy']:.3g}). Try: {cure}."
        )

    def plan_lines(self, total_steps: int, steps_per_epoch: int, batch_size: int) -> list[tuple[str, str]]:
        """Lines of the plan: the teacher's half-life, the cost of the views."""
        first = self.teacher_momentum(Progress(0, total_steps, steps_per_epoch))
        start, end = pair(self.config.teacher_temp)
        half = "for ever" if first >= 1 else f"{math.log(2) / (1 - first):.0f} steps"
        size = self.image_size
        shares = [((_side(text) or size) / size) ** 2 for text in self.views()]
        cost = sum(shares) + sum(shares[:GLOBALS]) / 3  # the teacher runs only forward
        return [
            (
                "teacher",
                f"half-life {half}, temperature {start:g} to {end:g}, {self.config.prototypes} prototypes",
            ),
            (
                "views",
                f"{GLOBALS} global, {self.config.local_views} local; about {cost:.1f} times a supervised step",
            ),
        ]

    def example(self, count: int, size: int | tuple[int, int]) -> Batch | None:
        if self.config.norm == "batch":
            count = max(2, count)
        sides = [_side(text) for text in self.views()]
        usual = size if isinstance(size, int) else max(size)
        channels = getattr(getattr(self.model, "backbone", self.model), "in_chans", 3)
        images = [torch.rand(count, channels, side or usual, side or usual) for side in sides]
        return Batch(images[0], views=[Batch(view) for view in images[1:]])

    def _count(self, logits: Tensor, targets: Tensor, embeddings: Tensor) -> None:
        """Add the sums of a micro-batch to `pending`."""
        z = F.normalize(embeddings.float(), dim=1)
        agree = (targets[0].argmax(1) == targets[1].argmax(1)).float().mean() * 2 * len(z)
        rows = targets.flatten(0, 1)
        counts = torch.stack([z.new_tensor(len(rows)), torch.special.entr(rows).sum(), agree, z.new_ones(())])
        self.pending += torch.cat([logits.float().mean(0), rows.sum(0), z.sum(0), z.square().sum(0), counts])


def measures(window: Tensor, center: Tensor, sizes: Sequence[int]) -> dict[str, float]:
    """Collapse diagnostics, from sums over rows of the teacher; natural logarithms.

    teacher_entropy: entropy of an assignment, averaged over rows. mean_entropy: entropy of the mean assignment.
    information: their difference, the mutual information of assignment and image; 0 in both kinds of collapse.
    feature_spread: standard deviation of the normalised embeddings, sqrt(C) times the mean over channels; 1 for
    embeddings uniform on the sphere. agreement: share of images with the same argmax in both global views.
    center_norm, center_max: of the centre.
    """
    p, z, squares, counts = window.double().cpu().split(list(sizes))
    rows, entropy, agree = counts.tolist()
    rows = max(rows, 1.0)
    images = rows / GLOBALS
    mean_entropy = torch.special.entr(p / rows).sum().item()
    variance = (squares / images - (z / images).square()).clamp(min=0)
    return {
        "teacher_entropy": entropy / rows,
        "mean_entropy": mean_entropy,
        "information": max(0.0, mean_entropy - entropy / rows),
        "feature_spread": math.sqrt(len(z)) * variance.sqrt().mean().item(),
        "agreement": agree / rows,
        "center_norm": center.norm().item(),
        "center_max": center.max().item(),
        "rows": rows,
    }


def settled(config: DinoConfig, images: int) -> DinoConfig:
    """`config` with every "auto" replaced, based on the number of training images.

    Prototypes: 1,024 up to 20,000 images, up to 65,536 from 500,000 on, never more than images. Teacher's
    temperature: 0.02 up to 20,000 images, rising to 0.04 -> 0.07 at 1.28 million; momentum: 0.99, rising to 0.996;
    both linear in the logarithm of the number of images.

    Raises:
        ValueError: for far more prototypes than images.
    """
    share = 0.0
    if images > 20_000:
        share = min(1.0, math.log(images / 20_000) / math.log(1_281_167 / 20_000))
    changes: dict[str, Any] = {}
    if config.prototypes == "auto":
        most = next((k for count, k in PROTOTYPES if images <= count), 65536)
        changes["prototypes"] = max(1, min(most, images)) if images else most
    if config.teacher_temp == "auto":
        changes["teacher_temp"] = (0.02 + 0.02 * share, 0.02 + 0.05 * share)
    if config.momentum == "auto":
        changes["momentum"] = (0.99 + 0.006 * share, 1.0)
    config = config.model_copy(update=changes)
    if images and isinstance(config.prototypes, int) and config.prototypes > MOST * images:
        raise ValueError(
            f"task.prototypes is {config.prototypes} for {images} training images, of which most would never be"
            f' used; at most {MOST * images}, or "auto": {min(1024, images)}.'
        )
    return config


def pair(value: tuple[float, float] | str) -> tuple[float, float]:
    """A setting after `settled`, which replaces "auto"."""
    assert not isinstance(value, str)
    return value


def _embedded(model: nn.Module, views: Sequence[Tensor], first: int = 0) -> Tensor:
    """Embeddings of all views (V B, C), view-major; consecutive views of one size are one batch.

    first: index of the first view.
    """
    groups: list[list[Tensor]] = []
    for view in views:
        if groups and groups[-1][0].shape[2:] == view.shape[2:]:
            groups[-1].append(view)
        else:
            groups.append([view])
    embeddings, seen = [], first
    for group in groups:
        with numbered_views(seen, len(group)):
            embeddings.append(model(torch.cat(group) if len(group) > 1 else group[0]))
        seen += len(group)
    return torch.cat(embeddings)


def _side(text: str) -> int | None:
    """The side in pixels of an augmentation's output; None: data.image_size."""
    sizes = [getattr(step, "size", None) for step in parse(text, size=1).steps]
    sides = [max(size) if isinstance(size, tuple) else size for size in sizes if size is not None]
    return next((side for side in sides if side > 1), None)


TASKS = {"dino": Dino}

__all__ = ["Dino", "DinoConfig", "dino_loss", "new_center"]
