"""Training a classifier: cross-entropy or per-class BCE, on hard, smoothed or mixed labels.

Shapes: B batch, K classes.
"""

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from tetravit.data.config import DataConfig
from tetravit.data.datasets.base import DatasetInfo
from tetravit.data.transforms.mixup import parse_mix
from tetravit.models import create_model
from tetravit.models.pretrained import load_backbone
from tetravit.protocols.base import check_classes
from tetravit.seeds import shared_generator
from tetravit.structures import Batch
from tetravit.tasks.base import Progress, Task, TaskConfig

MIXING = 0x6D6978  # separates these random numbers from other uses of the seed
Mix = Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]]


class ClassificationConfig(TaskConfig):
    """Keys of all classification tasks."""

    loss: Literal["cross_entropy", "bce"] = Field(
        default="cross_entropy",
        description="cross_entropy over the classes, or bce, binary cross-entropy per class.",
    )
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=1, description="Label smoothing: share distributed over all classes."
    )
    class_weights: Literal["none", "balanced"] | tuple[float, ...] = Field(
        default="none",
        description="Weights of the classes in the loss, a number for each; balanced: images / (classes x images of"
        " the class).",
    )


class Classification(Task):
    """Train a classifier; the best weights have the highest top-1.

    Raises:
        ValueError: if model and data have different numbers of classes.
    """

    Config: ClassVar[type[TaskConfig]] = ClassificationConfig
    static_graph = True
    config: ClassificationConfig
    class_weights: Tensor | None

    def __init__(self, model: nn.Module, config: ClassificationConfig, data: DatasetInfo) -> None:
        super().__init__(model, config, data)
        self.num_classes = data.num_classes
        check_classes(model, data)
        self.mix: Mix | None = None
        if data.multi_label and config.loss != "bce":
            raise ValueError(
                "Images with several classes train with task.loss=bce, a decision for each class."
            )
        self.register_buffer("class_weights", _class_weights(config.class_weights, data), persistent=False)

    @classmethod
    def create(cls, name: str, *, data: DatasetInfo, **model_options: Any) -> nn.Module:
        source = model_options.pop("backbone_weights", None)
        model = create_model(name, num_classes=data.num_classes, **model_options)
        if source is not None:
            load_backbone(model.backbone, name, source)
        return model

    def prepare(self, data: DataConfig) -> None:
        """Set up mixing of the images of a batch from `data.mix` ("mixup(0.8) | cutmix(1.0)")."""
        if data.mix and self.data.multi_label:
            raise ValueError(f"Images with several classes are not mixed; got data.mix={data.mix!r}.")
        if data.mix:
            self.mix = parse_mix(data.mix, self.num_classes, self.config.label_smoothing)

    def step(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        images, targets = self.mixed(batch)
        logits = self.model(images).float()  # (B, K)
        measure = decisions if self.data.multi_label else accuracy
        return {"loss": self.loss(logits, targets), "accuracy": measure(logits, targets)}

    def mixed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Images and labels (B,) of a batch or, after mixing, soft labels (B, K)."""
        if self.mix is None:
            return batch.images, batch.targets
        return self.mix(batch.images, batch.targets, shared_generator(MIXING))

    def example(self, count: int, size: int | tuple[int, int]) -> Batch:
        height, width = (size, size) if isinstance(size, int) else size
        in_chans = getattr(getattr(self.model, "backbone", None), "in_chans", 3)
        images, labels = (
            torch.randn(count, in_chans, height, width),
            torch.randint(self.num_classes, (count,)),
        )
        if self.data.multi_label:
            return Batch(images, F.one_hot(labels, self.num_classes).float())
        return Batch(images, labels)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of logits (B, K).

        targets: labels (B,); soft labels (B, K), already smoothed; or multi-label targets (B, K).
        """
        smoothing, weight = self.config.label_smoothing, self.class_weights
        if self.config.loss == "cross_entropy":
            hard = targets.ndim == 1
            return F.cross_entropy(logits, targets, weight=weight, label_smoothing=smoothing if hard else 0.0)
        if targets.ndim == 1:
            targets = F.one_hot(targets, self.num_classes) * (1.0 - smoothing) + smoothing / self.num_classes
        elif self.data.multi_label:
            targets = targets * (1.0 - smoothing) + smoothing / 2  # two outcomes per class
        return F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), weight=weight)


@torch.no_grad()
def accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    """Accuracy of a batch; the label of soft targets is the argmax."""
    labels = targets if targets.ndim == 1 else targets.argmax(dim=1)
    return (logits.argmax(dim=1) == labels).float().mean()


@torch.no_grad()
def decisions(logits: Tensor, targets: Tensor) -> Tensor:
    """The share of correct decisions (B, K) at probability 0.5."""
    return ((logits > 0) == (targets > 0.5)).float().mean()


def _class_weights(
    given: Literal["none", "balanced"] | tuple[float, ...], data: DatasetInfo
) -> Tensor | None:
    """Class weights (K,) of the loss.

    Raises:
        ValueError: for a wrong number of weights, or if images per class are not counted.
    """
    if given == "none":
        return None
    if given == "balanced":
        if data.counts is None:
            raise ValueError("task.class_weights=balanced needs a set that counts the images of its classes.")
        counts = torch.as_tensor(data.counts, dtype=torch.float32)
        return counts.sum() / (len(counts) * counts.clamp(min=1))
    if len(given) != data.num_classes or not all(w >= 0 for w in given):
        raise ValueError(
            f"task.class_weights takes {data.num_classes} numbers from 0 on, one per class; got {list(given)}."
        )
    return torch.tensor(given, dtype=torch.float32)
