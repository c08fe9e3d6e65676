"""Two-stage detection: region proposals, then one RoI stage (Mask R-CNN) or several (Cascade R-CNN).

Shapes: B images, P proposals or detections of an image, R regions of all images, K classes.
Source of every rule: mmdet 2.28.2 TwoStageDetector, StandardRoIHead, CascadeRoIHead.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tetravit.boxes.coding import BoxCoder, clip
from tetravit.boxes.losses import giou, smooth_l1
from tetravit.boxes.matching import Matcher
from tetravit.boxes.pooling import crop_masks, pool_regions
from tetravit.boxes.sampling import Sampler, sampling_keys
from tetravit.boxes.suppression import PAD_SCORE, SelectedBoxes, best, contenders, rows, select
from tetravit.heads.base import DetectionHead, count_rows
from tetravit.heads.parts.dense import Dense
from tetravit.heads.parts.fpn import FPN
from tetravit.heads.parts.proposals import ProposalNetwork
from tetravit.heads.parts.regions import BoxBranch, MaskBranch, of_class
from tetravit.structures import Target

BOX_SIDE, MASK_SIDE = 7, 14  # RoI pooling resolution
PURPOSE = 0x726F69  # for the first stage; separates these random numbers from other uses of a row's key


@dataclass(frozen=True)
class RoIStage:
    """One RoI stage: box coding, matching, and loss weight."""

    coder: BoxCoder
    matcher: Matcher
    weight: float = 1.0


@dataclass
class Sampled:
    """The sampled regions of one image: positives first."""

    boxes: Tensor  # (R, 4)
    labels: Tensor  # (R,), K for background
    rows: Tensor  # (positives,): the ground truth of each positive
    is_truth: Tensor  # (R,) bool: the box is a ground-truth box itself


class TwoStage(DetectionHead):
    """Feature pyramid, region proposal network, and one box and one mask branch per stage.

    score_threshold: minimum score of detections. overlap: NMS IoU threshold per class, with `class_agnostic` over all
    classes. max_detections: per image. num_candidates: anchors per level before NMS, doubled in training.
    num_proposals: proposals per image at inference. train_proposals: proposals per image from which training samples.
    num_samples: sampled regions per image. anchor_scale: sides of the square anchors, in strides of their level.
    width: channels of the pyramid.
    """

    has_masks = True
    fresh = ("boxes.*.score.*", "boxes.*.delta.*", "masks.*.score.*")

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        *,
        num_classes: int,
        stages: Sequence[RoIStage],
        num_convs: int,
        num_layers: int,
        box_loss: Literal["l1", "giou"],
        proposal_beta: float = 0.0,
        proposal_border: int | None = None,
        num_candidates: int = 1000,
        train_proposals: int = 1000,
        num_proposals: int = 1000,
        score_threshold: float = 0.05,
        overlap: float = 0.5,
        max_detections: int = 100,
        class_agnostic: bool = False,
        width: int = 256,
        anchor_scale: float = 8.0,
        num_samples: int = 512,
    ) -> None:
        super().__init__()
        self.num_classes, self.stages, self.box_loss = num_classes, tuple(stages), box_loss
        self.score_threshold, self.overlap = score_threshold, overlap
        self.max_detections, self.class_agnostic = max_detections, class_agnostic
        self.num_proposals = num_proposals
        self.num_candidates, self.train_candidates = num_candidates, 2 * num_candidates
        self.train_proposals = train_proposals
        self.sampler = Sampler(num_samples, 0.25)
        self.strides = tuple(strides)
        self.neck = FPN(channels, width, extra="pool")
        self.rpn = ProposalNetwork(
            width,
            (*strides, 2 * strides[-1]),
            scale=anchor_scale,
            beta=proposal_beta,
            border=proposal_border,
        )
        self.boxes = nn.ModuleList(
            BoxBranch(width, num_classes, num_convs=num_convs, num_layers=num_layers) for _ in stages
        )
        self.masks = nn.ModuleList(MaskBranch(width, num_classes) for _ in stages)

    def forward(self, maps: Sequence[Tensor], sizes: Any = None, targets: Any = None) -> Dense:
        """Maps at `strides` -> the pyramid, and the RPN outputs at every anchor."""
        return self.rpn(self.neck(maps))

    def box_predictions(self, i: int, levels: list[Tensor], regions: Tensor) -> tuple[Tensor, Tensor]:
        """Regions (R, 5) -> logits (R, K + 1) and offsets (R, K, 4) of stage `i`."""
        return self.boxes[i](pool_regions(levels[:-1], self.strides, regions, BOX_SIDE))

    def mask_logits(self, i: int, levels: list[Tensor], regions: Tensor) -> Tensor:
        """Regions (R, 5) -> mask logits per class (R, K, 28, 28) of stage `i`."""
        return self.masks[i](pool_regions(levels[:-1], self.strides, regions, MASK_SIDE))

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
        boxes, _, valid = self.rpn.propose(dense, sizes, before=self.num_candidates, after=self.num_proposals)
        logits: list[Tensor] = []
        for i, stage in enumerate(self.stages):
            logit, delta = (x.float() for x in self.box_predictions(i, dense.levels, as_regions(boxes)))
            logits.append(logit)
            if i + 1 < len(self.stages):
                delta = of_class(delta, logit[:, :-1].argmax(dim=1)).view(boxes.shape)
                boxes = clip(stage.coder.decode(boxes, delta), sizes)
        scores = torch.stack(logits).mean(dim=0).softmax(dim=1).view(*valid.shape, -1)[..., :-1]  # (B, P, K)
        wanted = (scores > self.score_threshold) & valid[..., None]
        scores = torch.where(wanted, scores, PAD_SCORE).flatten(1)
        score, index = best(scores, contenders(scores))
        deltas = rows(delta.reshape(boxes.shape[0], -1, 4), index)
        clipped = clip(stage.coder.decode(rows(boxes, index // self.num_classes), deltas), sizes)
        return select(
            clipped,
            score,
            index % self.num_classes,
            threshold=self.overlap,
            num=most,
            class_agnostic=class_agnostic,
        )

    def mask_probabilities(self, dense: Dense, boxes: Tensor, labels: Tensor) -> Tensor:
        """Masks of boxes (B, P, 4) with labels (B, P): (B, P, 28, 28), each relative to its box."""
        features = pool_regions(dense.levels[:-1], self.strides, as_regions(boxes), MASK_SIDE)
        masks = [of_class(branch(features), labels.flatten()).float().sigmoid() for branch in self.masks]
        return torch.stack(masks).mean(dim=0).unflatten(0, labels.shape)

    def loss(self, dense: Dense, targets: Sequence[Target], sizes: Tensor) -> dict[str, Tensor]:
        """Weighted losses; training minimises their sum. Boxes of `targets` are in pixels of the batch."""
        losses = self.rpn.loss(dense, targets, sizes, self.rank_means)
        boxes, _, valid = self.rpn.propose(
            dense, sizes, before=self.train_candidates, after=self.train_proposals
        )
        proposals = [box[keep] for box, keep in zip(boxes, valid, strict=True)]
        for i, stage in enumerate(self.stages):
            keys = sampling_keys(len(targets), PURPOSE + i, boxes.device)
            images = zip(targets, proposals, keys, strict=True)
            sampled = [self.sample(stage.matcher, target, boxes, key) for target, boxes, key in images]
            regions = listed([s.boxes for s in sampled])
            logits, deltas = self.box_predictions(i, dense.levels, regions)
            name = f"_{i + 1}" if len(self.stages) > 1 else ""
            pairs = list(zip(sampled, targets, strict=True))
            masked = sum(len(s.rows) for s, target in pairs if target.masks is not None)
            num_regions, num_masks = self.rank_means(len(regions), masked)
            parts = self.box_losses(stage, sampled, targets, logits, deltas, num_regions)
            share = masked / num_masks if num_masks else 0.0  # weight of this rank; 1 on a single rank
            parts["loss_mask"] = self.mask_loss(i, dense, sampled, targets) * share
            losses |= {f"{key}{name}": stage.weight * value for key, value in parts.items()}
            if i + 1 < len(self.stages):
                proposals = self.refine(stage, sampled, logits, deltas, sizes)
        return losses

    @torch.no_grad()
    def sample(
        self, matcher: Matcher, target: Target, proposals: Tensor, key: Tensor | None = None
    ) -> Sampled:
        """Match the proposals (P, 4) of an image, preceded by its ground truth, and sample regions."""
        count = len(target.boxes)
        boxes = torch.cat((target.boxes, proposals))
        own = torch.arange(count, device=boxes.device)
        matches = torch.cat((own, matcher(target.boxes, proposals)))
        positive, negative = self.sampler(matches, key)
        taken = torch.cat((positive, negative))
        classes = target.labels[matches[positive]]
        labels = torch.cat((classes, classes.new_full((len(negative),), self.num_classes)))
        return Sampled(boxes[taken], labels, matches[positive], taken < count)

    def box_losses(
        self,
        stage: RoIStage,
        sampled: list[Sampled],
        targets: Sequence[Target],
        logits: Tensor,
        deltas: Tensor,
        num_regions: float,
    ) -> dict[str, Tensor]:
        """Classification loss of all regions and box loss of the positive ones, both divided by `num_regions`."""
        labels = torch.cat([s.labels for s in sampled])
        count = num_regions or 1
        positive = (labels < self.num_classes).nonzero().flatten()
        boxes = torch.cat([s.boxes for s in sampled])[positive]
        pairs = zip(targets, sampled, strict=True)
        truths = torch.cat([target.boxes[s.rows] for target, s in pairs])
        delta = of_class(deltas[positive], labels[positive]).float()
        if self.box_loss == "giou":
            box = 10 * giou(stage.coder.decode(boxes, delta), truths)
        else:
            box = smooth_l1(delta, stage.coder.encode(boxes, truths), 0.0)
        score = F.cross_entropy(logits.float(), labels, reduction="sum")
        return {"loss_class": score / count, "loss_box": box / count}

    def mask_loss(self, i: int, dense: Dense, sampled: list[Sampled], targets: Sequence[Target]) -> Tensor:
        """Binary cross-entropy of the true class's mask, averaged over cells, for positives of images with masks."""
        boxes, labels, wanted = [], [], []
        for s, target in zip(sampled, targets, strict=True):
            count = len(s.rows) if target.masks is not None else 0
            boxes.append(s.boxes[:count])
            labels.append(s.labels[:count])
            if target.masks is not None:
                wanted.append(crop_masks(target.masks, s.rows, s.boxes[:count], 2 * MASK_SIDE))
        logits = of_class(self.mask_logits(i, dense.levels, listed(boxes)), torch.cat(labels)).float()
        if not logits.numel():
            return logits.sum()  # zero, with a gradient for every parameter
        return F.binary_cross_entropy_with_logits(logits, torch.cat(wanted))

    @torch.no_grad()
    def refine(
        self, stage: RoIStage, sampled: list[Sampled], logits: Tensor, deltas: Tensor, sizes: Tensor
    ) -> list[Tensor]:
        """The sampled regions refined by this stage: proposals of the next stage, without ground truth."""
        labels = torch.cat([s.labels for s in sampled])
        labels = torch.where(labels < self.num_classes, labels, logits[:, :-1].argmax(dim=1))
        delta = of_class(deltas, labels).float().split([len(s.boxes) for s in sampled])
        moved = [stage.coder.decode(s.boxes, d) for s, d in zip(sampled, delta, strict=True)]
        clipped = [clip(box[None], size[None])[0] for box, size in zip(moved, sizes, strict=True)]
        return [box[~s.is_truth] for box, s in zip(clipped, sampled, strict=True)]

    @classmethod
    def classes_in(cls, state: Mapping[str, Tensor]) -> int | None:
        rows = count_rows(state, ["boxes.0.score.bias"])
        return None if rows is None else rows - 1  # the last row is the background


def as_regions(boxes: Tensor) -> Tensor:
    """Boxes (B, P, 4) -> regions (B * P, 5), the image's index in front."""
    image = torch.arange(boxes.shape[0], device=boxes.device, dtype=boxes.dtype)
    return torch.cat((image[:, None, None].expand(*boxes.shape[:2], 1), boxes), dim=2).flatten(0, 1)


def listed(boxes: Sequence[Tensor]) -> Tensor:
    """One tensor of boxes (P, 4) per image -> regions (R, 5)."""
    return torch.cat([F.pad(box, (1, 0), value=i) for i, box in enumerate(boxes)])
