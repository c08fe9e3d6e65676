"""Losses of detection heads: sums over candidates; the head divides by its own count.

Everything is computed in float32, whatever the precision of the predictions.
"""

from torch import Tensor
from torch.nn import functional as F


def focal(logits: Tensor, labels: Tensor) -> Tensor:
    """Focal loss (arXiv:1708.02002) of logits (N, K) for labels (N,); K means background. A sum."""
    from torchvision.ops import sigmoid_focal_loss  # slow import, needed in training only

    hot = F.one_hot(labels, logits.shape[1] + 1)[:, :-1].float()
    return sigmoid_focal_loss(logits.float(), hot, alpha=0.25, gamma=2.0, reduction="sum")


def objectness(logits: Tensor, positive: Tensor) -> Tensor:
    """Binary cross-entropy of logits (N,) for bool `positive` (N,). A sum."""
    return F.binary_cross_entropy_with_logits(logits.float(), positive.float(), reduction="sum")


def smooth_l1(predicted: Tensor, targets: Tensor, beta: float) -> Tensor:
    """Absolute error, quadratic below `beta`; with beta 0 plain L1. A sum."""
    return F.smooth_l1_loss(predicted.float(), targets.float(), reduction="sum", beta=beta)


def giou(boxes: Tensor, targets: Tensor) -> Tensor:
    """1 - generalized IoU (arXiv:1902.09630) of boxes (N, 4). A sum."""
    from torchvision.ops import generalized_box_iou_loss

    return generalized_box_iou_loss(boxes.float(), targets.float(), reduction="sum")
