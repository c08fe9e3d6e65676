"""RetinaNet: one-stage detection with the focal loss (Lin et al. 2017, arXiv:1708.02002).

Shapes: A anchors per cell, K classes, N anchors of a level.
Source of every number: Twins' configuration for mmdet 2.8.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tetravit.boxes.anchors import ASPECT_RATIOS, AnchorGrid
from tetravit.boxes.coding import BoxCoder, clip
from tetravit.boxes.losses import focal, smooth_l1
from tetravit.boxes.matching import IGNORED, Matcher
from tetravit.boxes.suppression import PAD_SCORE, SelectedBoxes, best, contenders, rows, select
from tetravit.heads.base import DetectionHead, count_rows
from tetravit.heads.parts.dense import Dense, match_anchors, per_anchor, start_small
from tetravit.heads.parts.fpn import FPN
from tetravit.structures import Target

SCALES_PER_OCTAVE = 3
ANCHORS = SCALES_PER_OCTAVE * len(ASPECT_RATIOS)  # per cell


class RetinaNet(DetectionHead):
    """Levels at strides 8 to 128; two towers of four convolutions, shared over levels.

    The finest map (stride 4) is not used. score_threshold: minimum score of detections. overlap: NMS IoU threshold
    per class, with `class_agnostic` over all classes. max_detections: per image. num_candidates: per level, before
    NMS. anchor_scale: sides of the smallest square anchors, in strides of their level. width: channels of the
    pyramid.
    """

    first_map = 1
    fresh = ("score.*",)
    matcher = Matcher(positive=0.5, negative=0.4, least=0.0)
    coder = BoxCoder()

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        *,
        num_classes: int,
        score_threshold: float = 0.05,
        overlap: float = 0.5,
        max_detections: int = 100,
        class_agnostic: bool = False,
        num_candidates: int = 1000,
        anchor_scale: float = 4.0,
        width: int = 256,
    ) -> None:
        super().__init__()
        self.num_classes, self.num_candidates = num_classes, num_candidates
        self.score_threshold, self.overlap = score_threshold, overlap
        self.max_detections, self.class_agnostic = max_detections, class_agnostic
        self.neck = FPN(channels[self.first_map :], width, extra="conv")
        scales = [anchor_scale * 2 ** (i / SCALES_PER_OCTAVE) for i in range(SCALES_PER_OCTAVE)]
        self.grid = AnchorGrid((*strides[self.first_map :], 2 * strides[-1], 4 * strides[-1]), scales)
        self.score_convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(4))
        self.delta_convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(4))
        self.score = nn.Conv2d(width, self.grid.num_anchors * num_classes, 3, padding=1)
        self.delta = nn.Conv2d(width, self.grid.num_anchors * 4, 3, padding=1)
        for conv in (*self.score_convs, *self.delta_convs, self.score, self.delta):
            start_small(conv)
        nn.init.constant_(
            cast(Tensor, self.score.bias), -math.log(99)
        )  # initial probability of every class: 0.01

    def forward(self, maps: Sequence[Tensor], sizes: Any = None, targets: Any = None) -> Dense:
        """Maps at strides 4, 8, 16, 32 -> the pyramid, and logits and offsets of every anchor."""
        levels = self.neck(maps[self.first_map :])
        logits = [self.score(_tower(self.score_convs, x)) for x in levels]
        deltas = [self.delta(_tower(self.delta_convs, x)) for x in levels]
        return Dense(levels, logits, deltas)

    def decode(
        self,
        dense: Dense,
        sizes: Tensor,
        *,
        max_detections: int | None = None,
        class_agnostic: bool | None = None,
    ) -> SelectedBoxes:
        """Boxes in pixels of the batch; `sizes` (B, 2): height and width of the images."""
        most, class_agnostic = self.limits(max_detections, class_agnostic)
        boxes, scores, labels = [], [], []
        for anchors, logits, deltas in zip(self.grid(dense.logits), dense.logits, dense.deltas, strict=True):
            box, score, label = self._candidates(
                anchors, per_anchor(logits, self.num_classes), per_anchor(deltas, 4)
            )
            boxes.append(box)
            scores.append(score)
            labels.append(label)
        all_scores = torch.cat(scores, dim=1)
        score, index = best(all_scores, contenders(all_scores))
        clipped = clip(rows(torch.cat(boxes, dim=1), index), sizes)
        label = torch.cat(labels, dim=1).gather(1, index)
        return select(clipped, score, label, threshold=self.overlap, num=most, class_agnostic=class_agnostic)

    def loss(self, dense: Dense, targets: Sequence[Target], sizes: Tensor) -> dict[str, Tensor]:
        """Focal and L1 loss, both per positive anchor of the batch; boxes in pixels of the batch."""
        anchors, matches = match_anchors(self.grid, dense, targets, sizes, self.matcher)
        logits = torch.cat([per_anchor(x, self.num_classes) for x in dense.logits], dim=1)  # (B, N, K)
        deltas = torch.cat([per_anchor(x, 4) for x in dense.deltas], dim=1)  # (B, N, 4)
        score, box, positives = logits.new_zeros(()).float(), logits.new_zeros(()).float(), 0
        for target, match, logit, delta in zip(targets, matches, logits, deltas, strict=True):
            positive = (match >= 0).nonzero().flatten()
            labels = torch.full_like(match, self.num_classes)
            labels[positive] = target.labels[match[positive]]
            taken = match != IGNORED
            score = score + focal(logit[taken], labels[taken])
            truth = self.coder.encode(anchors[positive], target.boxes[match[positive]])
            box = box + smooth_l1(delta[positive], truth, 0.0)
            positives += max(len(positive), 1)
        (count,) = self.rank_means(positives)
        return {"loss_class": score / count, "loss_box": box / count}

    def _candidates(self, anchors: Tensor, logits: Tensor, deltas: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Top pairs of anchor and class of a level: boxes (B, n, 4), scores (B, n), labels (B, n).

        The top n pairs belong to the n anchors with the highest maximum over classes: only those are sorted.
        """
        _, index = best(logits.amax(dim=2).float().sigmoid(), self.num_candidates)
        scores = rows(logits, index).float().sigmoid()  # (B, n, K)
        scores = torch.where(scores > self.score_threshold, scores, PAD_SCORE)
        score, pair = best(scores.flatten(1), self.num_candidates)
        index = index.gather(1, pair // self.num_classes)
        return self.coder.decode(anchors[index], rows(deltas.float(), index)), score, pair % self.num_classes

    @classmethod
    def classes_in(cls, state: Mapping[str, Tensor]) -> int | None:
        rows = count_rows(state, ["score.bias"])
        return None if rows is None else rows // ANCHORS


def _tower(convs: nn.ModuleList, x: Tensor) -> Tensor:
    for conv in convs:
        x = F.relu(conv(x))
    return x


HEADS = {"retinanet": RetinaNet}
