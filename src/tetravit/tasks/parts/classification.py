"""Training a classifier: cross-entropy or one binary decision per class, on hard, smoothed or mixed labels.

Shapes: B batch, K classes.
"""

from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from tetravit.models import create_model
from tetravit.structures import Batch
from tetravit.tasks.base import Task, TaskConfig, from_ranks, over_ranks

MISTAKES = 24  # the most confident ones that a report shows
FULL_TABLE = 64  # classes up to which the whole confusion matrix is kept; above, its largest entries


class ClassificationConfig(TaskConfig):
    """What every task that trains a classifier takes.

    loss: `cross_entropy` over the classes, or `bce`, an independent decision for each.
    """

    loss: Literal["cross_entropy", "bce"] = "cross_entropy"
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)


class Classification(Task):
    """Train a classifier; the best weights are those with the highest top-1.

    mix: how images of a batch are mixed ("mixup(0.8) | cutmix(1.0)"); "" for not at all.

    Raises:
        ValueError: if the model has another number of classes than the data, or `mix` does not parse.
    """

    Config: ClassVar[type[TaskConfig]] = ClassificationConfig
    serves = "classify"
    watch = "top1"

    def __init__(
        self, model: nn.Module, config: ClassificationConfig, *, num_classes: int, mix: str = ""
    ) -> None:
        super().__init__(model)
        self.config, self.num_classes = config, num_classes
        have = getattr(model, "num_classes", num_classes)
        if have != num_classes:
            raise ValueError(f"The model has {have} classes; the data has {num_classes}.")
        self.mix = None
        if mix:
            from tetravit.data.transforms.mixup import parse_mix

            self.mix = parse_mix(mix, num_classes, config.label_smoothing)

    @classmethod
    def create(cls, name: str, *, num_classes: int, **options: Any) -> nn.Module:
        for option in ("head", "head_options", "backbone_weights"):
            if options.pop(option, None):
                raise ValueError(f"A classifier has no model.{option}; models that segment or detect have.")
        return create_model(name, num_classes=num_classes, **options)

    def step(self, batch: Batch) -> dict[str, Tensor]:
        images, targets = self.mixed(batch)
        logits = self.model(images).float()  # (B, K)
        return {"loss": self.loss(logits, targets), "accuracy": accuracy(logits, targets)}

    def mixed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The images of a batch and its labels (B,), or, after mixing, soft labels (B, K)."""
        if self.mix is None:
            return batch.images, batch.targets
        return self.mix(batch.images, batch.targets, torch.default_generator)

    def example(self, count: int, size: int | tuple[int, int]) -> Batch:
        height, width = (size, size) if isinstance(size, int) else size
        in_chans = getattr(getattr(self.model, "backbone", None), "in_chans", 3)
        return Batch(torch.randn(count, in_chans, height, width), torch.randint(self.num_classes, (count,)))

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Logits (B, K) and labels (B,) or soft labels (B, K), which carry their smoothing -> mean loss."""
        smoothing = self.config.label_smoothing
        if self.config.loss == "cross_entropy":
            hard = targets.ndim == 1
            return F.cross_entropy(logits, targets, label_smoothing=smoothing if hard else 0.0)
        if targets.ndim == 1:
            targets = F.one_hot(targets, self.num_classes) * (1.0 - smoothing) + smoothing / self.num_classes
        return F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype))

    def score(self, loader: Iterable[Batch]) -> dict[str, float]:
        """top1, top5 (shares in [0, 1]) and loss over the set; findings: confusion matrix, confident mistakes."""
        device, K = self.device, self.num_classes
        sums = torch.zeros(4, dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)
        confusion = torch.zeros(K * K, dtype=torch.int64, device=device)
        mistakes: list[dict[str, Any]] = []
        for batch in loader:
            batch = batch.to(device)
            logits, labels = self.model(batch.images).float(), batch.targets
            best = logits.topk(min(5, K), dim=1).indices  # (B, 5)
            hits = best == labels[:, None]
            loss = F.cross_entropy(logits, labels, reduction="sum")
            sums += torch.stack((hits[:, 0].sum(), hits.sum(), loss, sums.new_tensor(len(batch)))).to(
                sums.dtype
            )
            confusion += torch.bincount(labels * K + best[:, 0], minlength=K * K)
            mistakes = _most_confident(mistakes + _mistakes(logits, labels, best[:, 0], batch))
        top1, top5, loss, count = over_ranks(sums).tolist()
        if count == 0:
            raise ValueError("The set to score on is empty.")
        self.findings = {
            "count": int(count),
            "confusion": _table(over_ranks(confusion).view(K, K).cpu()),
            "mistakes": _most_confident(from_ranks(mistakes)),
        }
        return {"top1": top1 / count, "top5": top5 / count, "loss": loss / count}


@torch.no_grad()
def accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    """The share of a batch whose label, of soft ones the largest, has the highest score."""
    labels = targets if targets.ndim == 1 else targets.argmax(dim=1)
    return (logits.argmax(dim=1) == labels).float().mean()


def _mistakes(logits: Tensor, labels: Tensor, predicted: Tensor, batch: Batch) -> list[dict[str, Any]]:
    """The images of a batch that are classified wrongly, the most confident first."""
    wrong = (predicted != labels).nonzero()[:, 0]
    if not len(wrong):
        return []
    sure = logits[wrong].softmax(dim=1).amax(dim=1)
    found = zip(wrong.tolist(), sure.tolist(), labels[wrong].tolist(), predicted[wrong].tolist(), strict=True)
    return [
        {
            "name": batch.names[i] if batch.names else "",
            "index": batch.indices[i] if batch.indices else -1,
            "label": label,
            "predicted": guess,
            "confidence": round(p, 6),
        }
        for i, p, label, guess in found
    ]


def _most_confident(mistakes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(mistakes, key=lambda m: (-m["confidence"], m["name"]))[:MISTAKES]


def _table(confusion: Tensor) -> dict[str, Any]:
    """`matrix` (rows: labels, columns: predictions) for few classes, else `pairs` [label, predicted, count]."""
    if len(confusion) <= FULL_TABLE:
        return {"matrix": confusion.tolist()}
    wrong = confusion.clone().fill_diagonal_(0)
    counts, where = wrong.flatten().topk(500)
    K = len(confusion)
    pairs = [[i // K, i % K, n] for i, n in zip(where.tolist(), counts.tolist(), strict=True) if n]
    correct = (confusion.diagonal() / confusion.sum(dim=1).clamp_min(1)).tolist()
    return {"pairs": pairs, "recall": [round(r, 4) for r in correct]}
