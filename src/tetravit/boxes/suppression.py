"""Selection of boxes: top scores, and non-maximum suppression.

In an exported graph shapes must not depend on data: tensors are padded to a fixed size. In eager mode tensors are
padded to the longest row of a batch, and torchvision's NMS is used.

Shapes: B images, G independent groups (for example the levels of an image), K candidates, P selected boxes.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tetravit.kernels.vision import nms

PAD_SCORE = -1.0  # score of padding rows
GRAPH_CANDIDATES = 1000  # candidates per image for class-wise NMS in an exported graph


class SelectedBoxes(NamedTuple):
    """The final boxes of each image, best first; rows that are not `valid` are padding at the end."""

    boxes: Tensor  # (B, P, 4)
    scores: Tensor  # (B, P)
    labels: Tensor  # (B, P) int64
    valid: Tensor  # (B, P) bool


def best(scores: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """The top `num` scores (..., N) of each row and their indices, best first.

    Scores are at least 0, or PAD_SCORE. Rows with fewer than `num` scores are filled with PAD_SCORE.
    """
    values, index = F.pad(scores, (0, num), value=PAD_SCORE).topk(num)
    return values, index.clamp(max=scores.shape[-1] - 1)


def rows(table: Tensor, index: Tensor) -> Tensor:
    """Rows `index` (..., K) of a table (..., N, C) -> (..., K, C)."""
    return table.gather(-2, index[..., None].expand(*index.shape, table.shape[-1]))


def select(
    boxes: Tensor, scores: Tensor, labels: Tensor, *, threshold: float, num: int, class_agnostic: bool = False
) -> SelectedBoxes:
    """Non-maximum suppression among candidates (B, K), best first, PAD_SCORE for padding.

    threshold: maximum IoU of two selected boxes of a class; with `class_agnostic`, of any two. num: maximum number of
    boxes per image.
    """
    kept = survivors(boxes, scores > PAD_SCORE, threshold, None if class_agnostic else labels)
    values, index = best(torch.where(kept, scores, PAD_SCORE), num)
    valid = values > PAD_SCORE
    count = used(valid)
    selected = SelectedBoxes(rows(boxes, index), values.clamp(min=0), labels.gather(1, index), valid)
    return SelectedBoxes(*(part[:, :count] for part in selected))


def used(valid: Tensor) -> int:
    """Number of columns of `valid` (B, P), padding last, needed in eager mode: those with a valid row, at least 1."""
    if torch.compiler.is_exporting():
        return valid.shape[1]
    return max(1, int(valid.sum(dim=1).max()))


def contenders(scores: Tensor) -> int:
    """Number of candidates (B, N) per image for suppression: all valid ones; in a graph a fixed number.

    A graph selects the same boxes if they are among its best GRAPH_CANDIDATES: a candidate suppresses only those with
    lower scores.
    """
    if torch.compiler.is_exporting():
        return GRAPH_CANDIDATES
    return max(1, int((scores > PAD_SCORE).sum(dim=1).max()))


def survivors(boxes: Tensor, valid: Tensor, threshold: float, labels: Tensor | None = None) -> Tensor:
    """Mask of candidates that no better survivor (of the same label) overlaps by more than `threshold`.

    Args:
        boxes: (G, K, 4), best first.
        valid: (G, K) bool; invalid candidates neither survive nor suppress.
        threshold: maximum IoU of two survivors.
        labels: (G, K) int64; None: all candidates of a group compete.

    Returns:
        bool (G, K).
    """
    if torch.compiler.is_exporting():
        return fixed_point(rivals(boxes, threshold, labels), valid)
    kept = torch.zeros_like(valid)
    order = torch.arange(boxes.shape[1], 0, -1, device=boxes.device, dtype=torch.float64)
    spread = boxes.double()  # an offset per label separates the labels; exact in float64
    if labels is not None and boxes.numel():
        spread = spread + (labels * (spread.max() - spread.min() + 1))[..., None]
    for g in range(len(boxes)):
        here = valid[g].nonzero().flatten()
        kept[g, here[nms(spread[g, here], order[here], threshold)]] = True
    return kept


def rivals(boxes: Tensor, threshold: float, labels: Tensor | None = None) -> Tensor:
    """Pairs of overlapping candidates: bool (G, K, K), true at [g, i, j] where i is better and overlaps j."""
    low = torch.maximum(boxes[:, :, None, :2], boxes[:, None, :, :2])
    high = torch.minimum(boxes[:, :, None, 2:], boxes[:, None, :, 2:])
    common = (high - low).clamp(min=0).prod(dim=-1)  # (G, K, K)
    area = (boxes[..., 2:] - boxes[..., :2]).prod(dim=-1)
    iou = common / (area[:, :, None] + area[:, None, :] - common)
    rank = torch.arange(boxes.shape[1], device=boxes.device)
    overlapping = (iou > threshold) & (rank[:, None] < rank)
    return overlapping if labels is None else overlapping & (labels[:, :, None] == labels[:, None, :])


def fixed_point(rivals: Tensor, valid: Tensor) -> Tensor:
    """Greedy suppression as a loop for a graph: `rivals` (G, K, K), `valid` (G, K) -> bool (G, K).

    A candidate survives unless a survivor suppresses it. Iteration starts from all valid candidates. Each round
    finally decides at least the best undecided candidate, so it converges to the greedy result. Chains of overlaps
    are short: a few rounds are usual.
    """
    weights = rivals.float()

    def moving(kept: Tensor, before: Tensor) -> Tensor:
        return (kept != before).any()

    def settle(kept: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        beaten = (kept.float()[:, None, :] @ weights)[:, 0] > 0
        return valid & ~beaten, kept.clone()

    return torch.while_loop(moving, settle, (valid.clone(), torch.zeros_like(valid)))[0]
