"""Assign candidate boxes to ground-truth boxes by IoU.

Shapes: M ground-truth boxes, N candidates.
Source: mmdet 2.28.2 MaxIoUAssigner.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

BACKGROUND = -1
IGNORED = -2


@dataclass(frozen=True)
class Matcher:
    """By IoU: at least `positive` the best ground truth, below `negative` background, between them ignored.

    least: also assign to each ground truth its best candidates (all ties) if their IoU is at least this and above 0,
    even if those candidates overlap another ground truth more; None: off. If two ground truths have the same best
    candidate, it is assigned to the later one.
    """

    positive: float
    negative: float
    least: float | None = None

    def __call__(self, truths: Tensor, boxes: Tensor) -> Tensor:
        """Ground truths (M, 4) and candidates (N, 4) -> per candidate an index into `truths`, BACKGROUND or
        IGNORED."""
        from torchvision.ops import box_iou  # slow import, needed in training only

        matches = torch.full((len(boxes),), IGNORED, device=boxes.device)
        if not len(truths) or not len(boxes):
            return matches.fill_(BACKGROUND)
        iou = box_iou(truths, boxes)  # (M, N)
        best, row = iou.max(dim=0)
        matches = torch.where(best < self.negative, BACKGROUND, matches)
        matches = torch.where(best >= self.positive, row, matches)
        if self.least is None:
            return matches
        peak = iou.max(dim=1, keepdim=True).values
        claims = (iou == peak) & (peak >= self.least) & (peak > 0)  # (M, N)
        order = torch.arange(1, len(truths) + 1, device=boxes.device)[:, None]
        last = (claims * order).max(dim=0).values - 1
        return torch.where(last >= 0, last, matches)
