"""Top-1 and top-5 accuracy of classifiers.

Shapes: B batch, K classes.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from tetravit.protocols.base import EMPTY, Loaders, Protocol, ProtocolConfig, Scores, check_classes, device_of
from tetravit.protocols.parts.multi_label import score_multi_label
from tetravit.structures import Batch

MISTAKES = 24  # number of most confident mistakes in a report
FULL_TABLE = 64  # maximum number of classes for a full confusion matrix; above, only its largest entries


class AccuracyConfig(ProtocolConfig):
    """The `[evaluate]` section of classifiers."""

    select_by: Literal["top1", "balanced_accuracy"] = Field(
        default="top1",
        description="The score that selects the best weights; balanced_accuracy: mean recall of the classes."
        " For multi-label sets it is map, the mean average precision.",
    )


class Accuracy(Protocol):
    """top1, top5, mean recall of the classes (balanced_accuracy) and mean cross-entropy over the set.

    If the set has a subset of the model's classes, only their logits are compared. If an image has several correct
    labels, any of them counts. For multi-label sets see `parts.multi_label`.
    findings: count, confusion matrix, images, recall and precision per class, most confident mistakes.
    """

    name = "accuracy"
    kinds = ("classify",)
    primary_metrics = ("top1", "map")
    Config = AccuracyConfig

    def primary(self, values: Mapping[str, float]) -> str | None:
        name: str = self.config.select_by
        return name if name in values else super().primary(values)

    def score(self, model: nn.Module, loaders: Loaders) -> Scores:
        info = loaders.info
        if info.classes is not None:
            model = SomeClasses(model, info.classes)
        check_classes(model, info)
        if info.multi_label:
            return score_multi_label(model, loaders)
        return _score_several(model, loaders) if info.several else _score_single(model, loaders)


class SomeClasses(nn.Module):
    """The logits of a model for `classes`, a subset of the 1000 of ImageNet-1k.

    Raises:
        ValueError: unless the model has 1000 classes.
    """

    def __init__(self, model: nn.Module, classes: Sequence[int]) -> None:
        super().__init__()
        have = getattr(model, "num_classes", 1000)
        if have != 1000:
            raise ValueError(f"The model has {have} classes; the data takes those of ImageNet-1k, 1000.")
        self.model, self.num_classes = model, len(classes)
        device = device_of(model)
        self.register_buffer("classes", torch.tensor(classes, device=device), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        return logits[:, self.classes]  # type: ignore[index]


def _score_single(model: nn.Module, loaders: Loaders) -> Scores:
    """One label per image."""
    device, K, world = device_of(model), loaders.info.num_classes, loaders.world
    sums = torch.zeros(4, dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)
    confusion = torch.zeros(K * K, dtype=torch.int64, device=device)
    mistakes: list[dict[str, Any]] = []
    for batch in loaders.validation:
        batch = batch.to(device)
        logits, labels = model(batch.images).float(), batch.targets
        best = logits.topk(min(5, K), dim=1).indices  # (B, 5)
        hits = best == labels[:, None]
        loss = F.cross_entropy(logits, labels, reduction="sum")
        row = torch.stack((hits[:, 0].sum(), hits.sum(), loss, sums.new_tensor(len(batch))))
        sums += row.to(sums.dtype)
        confusion += torch.bincount(labels * K + best[:, 0], minlength=K * K)
        mistakes = _most_confident(mistakes + _mistakes(logits, labels, best[:, 0], batch))
    top1, top5, loss, count = world.all_sum(sums).tolist()
    if count == 0:
        raise ValueError(EMPTY)
    table = world.all_sum(confusion).view(K, K).cpu()
    findings = {
        "count": int(count),
        "confusion": _table(table),
        "classes": (classes := _classes(table)),
        "mistakes": _most_confident(world.all_gather(mistakes)),
    }
    recalls = [row["recall"] for row in classes if row["recall"] is not None]
    values = {
        "top1": top1 / count,
        "top5": top5 / count,
        "balanced_accuracy": sum(recalls) / len(recalls),
        "loss": loss / count,
    }
    return Scores(values, findings)


def _score_several(model: nn.Module, loaders: Loaders) -> Scores:
    """Top-k accuracy with several correct labels per image: a hit if any is among the highest logits."""
    device = device_of(model)
    sums = torch.zeros(3, dtype=torch.int64, device=device)
    for batch in loaders.validation:
        best = model(batch.images.to(device)).float().topk(5, dim=1).indices.tolist()
        for labels, guesses in zip(batch.targets, best, strict=True):
            hits = [not set(labels).isdisjoint(guesses[:k]) for k in (1, 5)]
            sums += torch.tensor([*hits, 1], device=device)
    top1, top5, count = loaders.world.all_sum(sums).tolist()
    if not count:
        raise ValueError(EMPTY)
    return Scores({"top1": top1 / count, "top5": top5 / count})


def _mistakes(logits: Tensor, labels: Tensor, predicted: Tensor, batch: Batch) -> list[dict[str, Any]]:
    """Misclassified images of a batch, most confident first."""
    wrong = (predicted != labels).nonzero()[:, 0]
    if not len(wrong):
        return []
    sure = logits[wrong].softmax(dim=1).amax(dim=1)
    rows = zip(wrong.tolist(), sure.tolist(), labels[wrong].tolist(), predicted[wrong].tolist(), strict=True)
    return [
        {
            "name": batch.names[i] if batch.names else "",
            "index": batch.indices[i] if batch.indices else -1,
            "label": label,
            "predicted": guess,
            "confidence": round(p, 6),
        }
        for i, p, label, guess in rows
    ]


def _most_confident(mistakes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(mistakes, key=lambda m: (-m["confidence"], m["name"]))[:MISTAKES]


def _classes(confusion: Tensor) -> list[dict[str, Any]]:
    """images, recall and precision per class; None for a class without images, or without predictions."""
    right, images, predicted = confusion.diagonal(), confusion.sum(dim=1), confusion.sum(dim=0)
    rows = zip(right.tolist(), images.tolist(), predicted.tolist(), strict=True)
    return [
        {"images": n, "recall": hits / n if n else None, "precision": hits / m if m else None}
        for hits, n, m in rows
    ]


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


PROTOCOLS = {"accuracy": Accuracy}
