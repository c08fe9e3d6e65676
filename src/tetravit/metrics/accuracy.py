"""Top-k accuracy and the confusion matrix.

Counts are stored, not averages: they add up exactly over batches and ranks.

Shapes: B images, K classes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


class Accuracy:
    """Running counts of predictions.

    hits: int64 (len(ks),), labels among the k highest logits. total: int64 (), number of images. confusion: int64 (K,
    K), row: true class, column: predicted class. To combine ranks, all-reduce `counts` in place.
    """

    def __init__(
        self, num_classes: int, ks: Sequence[int] = (1, 5), device: torch.device | str = "cpu"
    ) -> None:
        self.ks = tuple(ks)
        self.hits = torch.zeros(len(self.ks), dtype=torch.int64, device=device)
        self.total = torch.zeros((), dtype=torch.int64, device=device)
        self.confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)

    @property
    def counts(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.hits, self.total, self.confusion

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: logits (B, K), labels int64 (B,)."""
        self.hits += top_k_hits(logits, labels, self.ks)
        self.total += len(labels)
        self.confusion += confusion_matrix(logits.argmax(1), labels, len(self.confusion))

    def result(self) -> dict[str, float]:
        """Shares in [0, 1]: top1, top5, ...; NaN before the first image."""
        total = int(self.total)
        hits = self.hits.tolist()
        return {f"top{k}": h / total if total else float("nan") for k, h in zip(self.ks, hits, strict=True)}


def top_k_hits(logits: Tensor, labels: Tensor, ks: Sequence[int] = (1, 5)) -> Tensor:
    """Number of labels among the k largest logits, int64 (len(ks),); k is at most K.

    A row with a NaN counts as wrong.
    """
    most = min(max(ks), logits.shape[1])
    hits = logits.topk(most, dim=1).indices == labels[:, None]  # (B, most)
    hits &= ~logits.isnan().any(dim=1, keepdim=True)
    return torch.stack([hits[:, :k].sum() for k in ks])


def confusion_matrix(predicted: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Confusion matrix, int64 (K, K): row: true class, column: predicted class."""
    cells = labels * num_classes + predicted
    return torch.bincount(cells, minlength=num_classes**2).view(num_classes, num_classes)


def per_class(confusion: Tensor) -> Tensor:
    """Recall of each class, float64 (K,); NaN for a class without images."""
    return confusion.diagonal() / confusion.sum(dim=1).to(torch.float64)
