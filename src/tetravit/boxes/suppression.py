"""Choosing among candidate boxes: the best by score, and of those that overlap only the best.

In an exported graph no shape depends on the data: what is missing is filled up. An eager run leaves the filling
away where that saves work, and lets torchvision suppress.

Shapes: B images, G independent groups (the levels of an image, say), K candidates, P picked.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import nms

FILLING = -1.0  # the score of a row that stands for nothing
GRAPH_CANDIDATES = 1000  # how many of an image compete class by class in an exported graph


class Picked(NamedTuple):
    """The final boxes of each image, best first; rows that are not `valid` are filling at the end."""

    boxes: Tensor  # (B, P, 4)
    scores: Tensor  # (B, P)
    labels: Tensor  # (B, P) int64
    valid: Tensor  # (B, P) bool


def best(scores: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """The highest `num` scores (..., N) of each row and where they stand, best first.

    Scores are at least 0, or FILLING. Where there are fewer than `num`, FILLING follows.
    """
    values, index = F.pad(scores, (0, num), value=FILLING).topk(num)
    return values, index.clamp(max=scores.shape[-1] - 1)


def rows(table: Tensor, index: Tensor) -> Tensor:
    """Rows `index` (..., K) of a table (..., N, C) -> (..., K, C)."""
    return table.gather(-2, index[..., None].expand(*index.shape, table.shape[-1]))


def pick(boxes: Tensor, scores: Tensor, labels: Tensor, *, threshold: float, num: int) -> Picked:
    """Of candidates (B, K), best first, FILLING where there is none, the best `num` survivors of each image."""
    kept = survivors(boxes, scores > FILLING, threshold, labels)
    values, index = best(torch.where(kept, scores, FILLING), num)
    valid = values > FILLING
    count = used(valid)
    picked = Picked(rows(boxes, index), values.clamp(min=0), labels.gather(1, index), valid)
    return Picked(*(part[:, :count] for part in picked))


def used(valid: Tensor) -> int:
    """How many columns of `valid` (B, P), filling last, an eager run needs: those with a valid row, at least 1."""
    if torch.compiler.is_exporting():
        return valid.shape[1]
    return max(1, int(valid.sum(dim=1).max()))


def contenders(scores: Tensor) -> int:
    """How many of the candidates (B, N) of an image compete: all that are not FILLING, in a graph a fixed number.

    A graph finds the same boxes as long as what it keeps lies among its best GRAPH_CANDIDATES: later ones
    suppress nothing that is better.
    """
    if torch.compiler.is_exporting():
        return GRAPH_CANDIDATES
    return max(1, int((scores > FILLING).sum(dim=1).max()))


def survivors(boxes: Tensor, valid: Tensor, threshold: float, labels: Tensor | None = None) -> Tensor:
    """Which candidates no better survivor (of their label) overlaps by more than `threshold`.

    Args:
        boxes: (G, K, 4), best first.
        valid: (G, K) bool; the others neither survive nor suppress.
        threshold: the largest intersection over union that two survivors may have.
        labels: (G, K) int64; None: all candidates of a group compete.

    Returns:
        bool (G, K).
    """
    if torch.compiler.is_exporting():
        return fixed_point(rivals(boxes, threshold, labels), valid)
    kept = torch.zeros_like(valid)
    order = torch.arange(boxes.shape[1], 0, -1, device=boxes.device, dtype=torch.float64)
    spread = boxes.double()  # labels are told apart by distance: exact in float64
    if labels is not None and boxes.numel():
        spread = spread + (labels * (spread.max() - spread.min() + 1))[..., None]
    for g in range(len(boxes)):
        here = valid[g].nonzero().flatten()
        kept[g, here[nms(spread[g, here], order[here], threshold)]] = True
    return kept


def rivals(boxes: Tensor, threshold: float, labels: Tensor | None = None) -> Tensor:
    """Which candidate would suppress which: bool (G, K, K), at [g, i, j] that i is better and overlaps j."""
    low = torch.maximum(boxes[:, :, None, :2], boxes[:, None, :, :2])
    high = torch.minimum(boxes[:, :, None, 2:], boxes[:, None, :, 2:])
    common = (high - low).clamp(min=0).prod(dim=-1)  # (G, K, K)
    area = (boxes[..., 2:] - boxes[..., :2]).prod(dim=-1)
    iou = common / (area[:, :, None] + area[:, None, :] - common)
    rank = torch.arange(boxes.shape[1], device=boxes.device)
    found = (iou > threshold) & (rank[:, None] < rank)
    return found if labels is None else found & (labels[:, :, None] == labels[:, None, :])


def fixed_point(rivals: Tensor, valid: Tensor) -> Tensor:
    """The greedy choice as a loop that a graph can hold: `rivals` (G, K, K), `valid` (G, K) -> bool (G, K).

    A candidate stays unless one that stays suppresses it. Rounds start from all valid ones; each settles for
    good at least the first candidate whose betters are settled, so they end, and only the greedy choice
    stands still. Chains of overlaps are short: a handful of rounds is usual.
    """
    weights = rivals.float()

    def moving(kept: Tensor, before: Tensor) -> Tensor:
        return (kept != before).any()

    def settle(kept: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        beaten = (kept.float()[:, None, :] @ weights)[:, 0] > 0
        return valid & ~beaten, kept.clone()

    return torch.while_loop(moving, settle, (valid.clone(), torch.zeros_like(valid)))[0]
