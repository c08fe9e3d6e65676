"""The class logit of a detection in the outputs of a detection head, the box fixed.

Shapes: B = 1 image, A anchors or proposals, K classes.
"""

import torch
from torch import Tensor

from tetravit.boxes.coding import clip, corners
from tetravit.heads import Head
from tetravit.heads.dino_detr import DinoDETR, SetPrediction
from tetravit.heads.parts.dense import Dense, per_anchor
from tetravit.heads.parts.regions import of_class
from tetravit.heads.parts.two_stage import TwoStage, as_regions
from tetravit.heads.retinanet import RetinaNet


def class_logit(head: Head, outputs: object, sizes: Tensor, box: Tensor, class_: int, score: float) -> Tensor:
    """The logit, with gradients, that became the score of a detection.

    Args:
        head: RetinaNet: the logit at the anchor and class of the detection. Two-stage heads: the logit of its
            proposal, which is fixed; for a cascade the mean over the stages, each at its own fixed boxes. DINO-DETR:
            the logit of its query in the last layer.
        outputs: outputs of the head, for one image.
        sizes: (1, 2), height and width of the image.
        box, class_, score: of the detection, box (4,) in pixels.

    Raises:
        ValueError: for another head.
    """
    if isinstance(head, RetinaNet) and isinstance(outputs, Dense):
        logits, boxes = _anchors(head, outputs, sizes)
        return logits[_match(logits.sigmoid()[:, class_], boxes, box, score), class_]
    if isinstance(head, TwoStage) and isinstance(outputs, Dense):
        logits, boxes = _proposals(head, outputs, sizes, class_)
        return logits[_match(logits.softmax(dim=1)[:, class_], boxes, box, score), class_]
    if isinstance(head, DinoDETR) and isinstance(outputs, SetPrediction):
        logits = outputs.logits[-1][0].float()
        sides = sizes.flip(1).repeat(1, 2).to(box.dtype)
        boxes = corners(outputs.boxes[-1][0].float()) * sides
        return logits[_match(logits.sigmoid()[:, class_], boxes, box, score), class_]
    raise ValueError(
        f"Which logit a detection of {type(head).__name__} comes from is not known; use --method occlusion."
    )


@torch.no_grad()
def _match(scores: Tensor, boxes: Tensor, box: Tensor, score: float) -> int:
    """The candidate (A,) whose score and box are those of the detection."""
    apart = (boxes - box).abs().amax(dim=1) / box.abs().max().clamp(min=1) + (scores - score).abs()
    return int(apart.argmin())


def _anchors(head: RetinaNet, dense: Dense, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (A, K) and boxes (A, 4) of all anchors."""
    logits, boxes = [], []
    for anchors, logit, delta in zip(head.grid(dense.logits), dense.logits, dense.deltas, strict=True):
        logits.append(per_anchor(logit, head.num_classes)[0].float())
        with torch.no_grad():
            decoded = head.coder.decode(anchors, per_anchor(delta, 4)[0].float())
            boxes.append(clip(decoded[None], sizes)[0])
    return torch.cat(logits), torch.cat(boxes)


def _proposals(head: TwoStage, dense: Dense, sizes: Tensor, class_: int) -> tuple[Tensor, Tensor]:
    """Logits (A, K + 1), means over the stages, and boxes (A, 4) of a class, of all proposals."""
    boxes, _, _ = head.rpn.propose(dense, sizes, before=head.num_candidates, after=head.num_proposals)
    logits: list[Tensor] = []
    for i, stage in enumerate(head.stages):
        logit, delta = (x.float() for x in head.box_predictions(i, dense.levels, as_regions(boxes)))
        logits.append(logit)
        last = i + 1 == len(head.stages)
        with torch.no_grad():
            moved = delta[:, class_] if last else of_class(delta, logit[:, :-1].argmax(dim=1))
            boxes = clip(stage.coder.decode(boxes, moved.view(boxes.shape)), sizes)
    return torch.stack(logits).mean(dim=0), boxes[0]
