"""Multi-label scores: average precision, and a threshold per class.

Shapes: N images of the set, K classes.
"""

import torch
from torch import Tensor, nn

from tetravit.protocols.base import EMPTY, Loaders, Scores, device_of


def score_multi_label(model: nn.Module, loaders: Loaders) -> Scores:
    """map: mean average precision of the classes that occur; f1: mean over them, each at its own best threshold.

    findings: per class images, average precision, best probability threshold, and precision, recall and F1 at it;
    None for a class without images.

    Raises:
        ValueError: if the set is empty, or no image has a class.
    """
    device, rows = device_of(model), []
    for batch in loaders.validation:
        probabilities = model(batch.images.to(device)).float().sigmoid().cpu()
        rows += list(zip(probabilities.tolist(), batch.targets.tolist(), strict=True))
    rows = loaders.world.all_gather(rows)
    if not rows:
        raise ValueError(EMPTY)
    probabilities = torch.tensor([row[0] for row in rows], dtype=torch.float64)  # (N, K)
    labels = torch.tensor([row[1] for row in rows]) > 0.5  # (N, K)
    if not labels.any():
        raise ValueError("No image to score on has a class.")
    classes = [class_figures(probabilities[:, k], labels[:, k]) for k in range(labels.shape[1])]
    known = [row for row in classes if row["ap"] is not None]
    values = {
        name: sum(row[key] or 0.0 for row in known) / len(known)
        for name, key in (("map", "ap"), ("f1", "f1"))
    }
    return Scores(values, {"count": len(rows), "classes": classes})


def class_figures(probabilities: Tensor, labels: Tensor) -> dict[str, float | None]:
    """Scores of one class from its probabilities (N,) and labels (N,), bool.

    Average precision sums precision times the gain in recall over distinct thresholds, as in scikit-learn; equal
    probabilities share a threshold.
    """
    images = int(labels.sum())
    if not images:
        return {"images": 0} | dict.fromkeys(("ap", "threshold", "precision", "recall", "f1"))
    order = probabilities.argsort(descending=True, stable=True)
    scores, hits = probabilities[order], labels[order].double()
    last = torch.cat(
        (scores[1:] != scores[:-1], torch.ones(1, dtype=torch.bool))
    )  # last of equal probabilities
    right = hits.cumsum(0)[last]
    precision = right / (torch.arange(len(scores))[last] + 1)
    recall = right / images
    gains = recall.diff(prepend=recall.new_zeros(1))
    f1 = 2 * precision * recall / (precision + recall).clamp(min=1e-12)
    best = int(f1.argmax())
    return {
        "images": images,
        "ap": float((precision * gains).sum()),
        "threshold": float(scores[last][best]),
        "precision": float(precision[best]),
        "recall": float(recall[best]),
        "f1": float(f1[best]),
    }
