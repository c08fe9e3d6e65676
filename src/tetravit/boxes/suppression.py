"""Choosing among candidate boxes: the best by score, and of those that overlap only the best.

Nothing here has a shape that depends on the data, so the same code serves eager runs and exported graphs.

Shapes: B images, G independent groups (the levels of an image, say), K candidates, P picked.
"""

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import nms

FILLING = -1.0  # the score of a row that stands for nothing


def best(scores: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """The highest `num` scores (..., N) of each row and where they stand, best first.

    Scores are at least 0, or FILLING. Of fewer than `num` an eager run gives all; a graph, which does not know
    how many there will be, fills up.
    """
    if not torch.compiler.is_exporting():
        return scores.topk(min(num, scores.shape[-1]))
    values, index = F.pad(scores, (0, num), value=FILLING).topk(num)
    return values, index.clamp(max=scores.shape[-1] - 1)


def rows(table: Tensor, index: Tensor) -> Tensor:
    """Rows `index` (..., K) of a table (..., N, C) -> (..., K, C)."""
    return table.gather(-2, index[..., None].expand(*index.shape, table.shape[-1]))


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
    """Which candidate would suppress which: bool (G, K, K), true at [g, i, j] where i is better and overlaps j."""
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
    good at least the first candidate whose betters are settled, so they end, and only the greedy choice stands
    still. Chains of overlaps are short: a handful of rounds is usual.
    """
    weights = rivals.float()

    def moving(kept: Tensor, before: Tensor) -> Tensor:
        return (kept != before).any()

    def settle(kept: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        beaten = (kept.float()[:, None, :] @ weights)[:, 0] > 0
        return valid & ~beaten, kept.clone()

    return torch.while_loop(moving, settle, (valid.clone(), torch.zeros_like(valid)))[0]
