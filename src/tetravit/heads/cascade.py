"""Cascade Mask R-CNN: three RoI stages with increasing IoU thresholds (Cai and Vasconcelos 2018, arXiv:1712.00726).

Source of every number: GC ViT's configuration for mmdet 2.19.
"""

from collections.abc import Sequence

from tetravit.boxes.coding import BoxCoder
from tetravit.boxes.matching import Matcher
from tetravit.heads.parts.two_stage import RoIStage, TwoStage

STAGES = (
    RoIStage(BoxCoder((0.1, 0.1, 0.2, 0.2)), Matcher(positive=0.5, negative=0.5), weight=1.0),
    RoIStage(BoxCoder((0.05, 0.05, 0.1, 0.1)), Matcher(positive=0.6, negative=0.6), weight=0.5),
    RoIStage(BoxCoder((0.033, 0.033, 0.067, 0.067)), Matcher(positive=0.7, negative=0.7), weight=0.25),
)


class Cascade(TwoStage):
    """Three stages with convolutional box branches, losses on decoded boxes, and a mask branch per stage.

    Class scores and masks are averaged over the stages; boxes are those of the last. Options as in `TwoStage`.
    """

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
        num_proposals: int = 1000,
        num_samples: int = 512,
        anchor_scale: float = 8.0,
        width: int = 256,
    ) -> None:
        super().__init__(
            channels,
            strides,
            num_classes=num_classes,
            stages=STAGES,
            num_convs=4,
            num_layers=1,
            box_loss="giou",
            proposal_beta=1 / 9,
            proposal_border=0,
            train_proposals=2000,
            num_candidates=num_candidates,
            num_proposals=num_proposals,
            score_threshold=score_threshold,
            overlap=overlap,
            max_detections=max_detections,
            class_agnostic=class_agnostic,
            num_samples=num_samples,
            anchor_scale=anchor_scale,
            width=width,
        )


HEADS = {"cascade": Cascade}
