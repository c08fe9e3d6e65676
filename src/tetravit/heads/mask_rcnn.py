"""Mask R-CNN: region proposals, then class, box and mask of each (He et al. 2017, arXiv:1703.06870).

Source of every number: the identical configurations of XCiT, Twins and GC ViT for mmdet 2.x.
"""

from collections.abc import Sequence

from tetravit.boxes.coding import BoxCoder
from tetravit.boxes.matching import Matcher
from tetravit.heads.parts.two_stage import RoIStage, TwoStage

STAGE = RoIStage(BoxCoder((0.1, 0.1, 0.2, 0.2)), Matcher(positive=0.5, negative=0.5, least=0.5))


class MaskRCNN(TwoStage):
    """Mask R-CNN head: 1000 proposals, one stage, L1 box losses. Options as in `TwoStage`."""

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
            stages=(STAGE,),
            num_convs=0,
            num_layers=2,
            box_loss="l1",
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


HEADS = {"mask_rcnn": MaskRCNN}
