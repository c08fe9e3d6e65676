"""Hungarian matching of queries to objects (DETR, arXiv:2005.12872; Deformable DETR, arXiv:2010.04159).

Shapes: B images, Q queries, K classes, M objects of an image.
Source: IDEA-Research/DINO@faa8520 models/dino/matcher.py (HungarianMatcher), util/box_ops.py.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from tetravit.boxes.coding import corners

CLASS_COST, BOX_COST, GIOU_COST = 2.0, 5.0, 2.0
ALPHA, GAMMA = 0.25, 2.0  # of the focal loss behind the class cost
NO_SCIPY = "Matching queries to objects needs scipy: pip install scipy, or tetravit with its extra coco."


def match(
    logits: Tensor, boxes: Tensor, labels: Sequence[Tensor], truth: Sequence[Tensor]
) -> list[tuple[Tensor, Tensor]]:
    """The minimum-cost one-to-one assignment of objects to queries, per image.

    Args:
        logits: (B, Q, K).
        boxes: (B, Q, 4), cx cy w h in 0..1.
        labels: per image (M,) int64.
        truth: per image (M, 4), cx cy w h in 0..1.

    Returns:
        Per image (queries, objects), int64 on the device of the boxes, sorted by query: min(Q, M) pairs.

    Raises:
        ValueError: if scipy is not installed.
    """
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise ValueError(NO_SCIPY) from error
    with torch.no_grad():
        costs = [cost(*image) for image in zip(logits, boxes, labels, truth, strict=True)]
        flat = (
            torch.cat([c.flatten() for c in costs]).cpu().numpy() if costs else None
        )  # one transfer from a GPU
    matches, start = [], 0
    for c in costs:
        assert flat is not None
        part = flat[start : start + c.numel()].reshape(c.shape)
        start += c.numel()
        queries, objects = linear_sum_assignment(part)
        pairs = torch.stack((torch.from_numpy(queries), torch.from_numpy(objects))).to(boxes.device)
        matches.append((pairs[0], pairs[1]))
    return matches


def cost(logits: Tensor, boxes: Tensor, labels: Tensor, truth: Tensor) -> Tensor:
    """Cost of each pair of query and object: (Q, K), (Q, 4), (M,), (M, 4) -> (Q, M), finite."""
    p = logits.float()[:, labels].sigmoid()  # (Q, M): the classes that are there
    boxes, truth = boxes.float(), truth.float()
    present = ALPHA * (1 - p) ** GAMMA * -(p + 1e-8).log()
    absent = (1 - ALPHA) * p**GAMMA * -(1 - p + 1e-8).log()
    distance = torch.cdist(boxes, truth, p=1)
    overlap = generalized_iou(corners(boxes)[:, None], corners(truth)[None])
    total = BOX_COST * distance + CLASS_COST * (present - absent) - GIOU_COST * overlap
    return total.nan_to_num(
        nan=1e6, posinf=1e6, neginf=-1e6
    )  # after an overflow: the loss becomes non-finite, matching must not fail


def generalized_iou(a: Tensor, b: Tensor) -> Tensor:
    """Generalized IoU (arXiv:1902.09630) of boxes (..., 4), broadcast, -> (...); defined for zero area too."""
    overlap, union = _overlap(a, b)
    low, high = torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:])
    hull = (high - low).clamp(min=0).prod(dim=-1)
    return overlap / (union + 1e-6) - (hull - union) / (hull + 1e-6)


def _overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    overlap = (high - low).clamp(min=0).prod(dim=-1)
    areas = [(box[..., 2:] - box[..., :2]).prod(dim=-1) for box in (a, b)]
    return overlap, areas[0] + areas[1] - overlap
