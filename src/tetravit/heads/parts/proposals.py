"""Region proposal network (Ren et al. 2015, arXiv:1506.01497).

Shapes: A anchors per cell, N anchors of a level, P proposals.
Source of every number: mmdet 2.28.2 RPNHead as the papers configure it.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tetravit.boxes.anchors import AnchorGrid
from tetravit.boxes.coding import BoxCoder, clip
from tetravit.boxes.losses import objectness, smooth_l1
from tetravit.boxes.matching import Matcher
from tetravit.boxes.sampling import Sampler, sampling_keys
from tetravit.boxes.suppression import PAD_SCORE, best, rows, survivors, used
from tetravit.heads.parts.dense import Dense, match_anchors, per_anchor, start_small
from tetravit.structures import Target

PURPOSE = 0x72706E  # separates these random numbers from other uses of a row's key


class ProposalNetwork(nn.Module):
    """Levels of `width` channels -> objectness and box offsets of every anchor.

    scale: sides of the square anchors, in strides of their level. beta: error at which the smooth L1 loss turns from
    quadratic to linear; 0: L1. border: in training, ignore anchors that extend this many pixels beyond the image;
    None: use all.
    """

    matcher = Matcher(positive=0.7, negative=0.3, least=0.3)
    coder = BoxCoder()
    overlap = 0.7  # maximum IoU of two proposals of a level

    def __init__(
        self,
        width: int,
        strides: Sequence[int],
        *,
        scale: float = 8.0,
        beta: float = 0.0,
        border: int | None = None,
    ) -> None:
        super().__init__()
        self.beta, self.border = beta, border
        self.sampler = Sampler(256, 0.5)
        self.grid = AnchorGrid(strides, scales=(scale,))
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.score = nn.Conv2d(width, self.grid.num_anchors, 1)
        self.delta = nn.Conv2d(width, 4 * self.grid.num_anchors, 1)
        for conv in (self.conv, self.score, self.delta):
            start_small(conv)

    def forward(self, levels: list[Tensor]) -> Dense:
        features = [F.relu(self.conv(x)) for x in levels]
        return Dense(levels, [self.score(x) for x in features], [self.delta(x) for x in features])

    @torch.no_grad()
    def propose(
        self, dense: Dense, sizes: Tensor, *, before: int, after: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The best proposals over all levels.

        Args:
            sizes: (B, 2) height and width of each image.
            before: candidates per level; after: proposals per image.

        Returns:
            Boxes (B, P, 4) and their scores (B, P), best first, and the validity of rows (B, P), padding last.
        """
        boxes, scores = [], []
        for anchors, logits, deltas in zip(self.grid(dense.logits), dense.logits, dense.deltas, strict=True):
            score, index = best(per_anchor(logits, 1)[..., 0].float().sigmoid(), before)
            reference, delta = anchors[index], rows(per_anchor(deltas, 4).float(), index)
            box = clip(self.coder.decode(reference, delta), sizes)
            empty = ((box[..., 2:] - box[..., :2]) <= 0).any(dim=-1)
            boxes.append(box)
            scores.append(score.masked_fill(empty, PAD_SCORE))
        level_boxes, level_scores = torch.stack(boxes, 1), torch.stack(scores, 1)  # (B, levels, before, ...)
        kept = survivors(level_boxes.flatten(0, 1), level_scores.flatten(0, 1) > PAD_SCORE, self.overlap)
        score = torch.where(kept.view(level_scores.shape), level_scores, PAD_SCORE).flatten(1)
        score, index = best(score, after)
        valid = score > PAD_SCORE
        count = used(valid)
        box = rows(level_boxes.flatten(1, 2), index)
        return box[:, :count], score[:, :count], valid[:, :count]

    def loss(
        self,
        dense: Dense,
        targets: Sequence[Target],
        sizes: Tensor,
        rank_means: Callable[[int], Sequence[float]] = lambda count: [count],
    ) -> dict[str, Tensor]:
        """Objectness and box loss of the sampled anchors, both divided by the number of samples.

        rank_means: see `DetectionHead.rank_means`.
        """
        anchors, matches = match_anchors(self.grid, dense, targets, sizes, self.matcher, self.border)
        logits = torch.cat([per_anchor(x, 1) for x in dense.logits], dim=1)[..., 0]  # (B, N)
        deltas = torch.cat([per_anchor(x, 4) for x in dense.deltas], dim=1)  # (B, N, 4)
        score, box, sampled = logits.new_zeros(()).float(), logits.new_zeros(()).float(), 0
        keys = sampling_keys(len(targets), PURPOSE, anchors.device)
        for target, match, logit, delta, key in zip(targets, matches, logits, deltas, keys, strict=True):
            positive, negative = self.sampler(match, key)
            taken = torch.cat((positive, negative))
            score = score + objectness(logit[taken], match[taken] >= 0)
            truth = self.coder.encode(anchors[positive], target.boxes[match[positive]])
            box = box + smooth_l1(delta[positive], truth, self.beta)
            sampled += max(len(positive), 1) + max(len(negative), 1)
        (count,) = rank_means(sampled)
        return {"loss_rpn_class": score / count, "loss_rpn_box": box / count}
