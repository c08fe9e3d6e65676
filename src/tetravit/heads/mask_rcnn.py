"""Mask R-CNN: propose regions, classify, place and mask each (He et al. 2017, arXiv:1703.06870).

Source of every number: the configurations of XCiT, Twins and GC ViT for mmdet 2.x, which agree.
"""

from collections.abc import Sequence

from tetravit.boxes.coding import BoxCoder
from tetravit.boxes.matching import Matcher
from tetravit.heads.parts.two_stage import Look, TwoStage

LOOK = Look(BoxCoder((0.1, 0.1, 0.2, 0.2)), Matcher(positive=0.5, negative=0.5, least=0.5))


class MaskRCNN(TwoStage):
    """One look at 1000 regions, L1 box losses.

    score_threshold: detections below are dropped. overlap: the largest between two detections of a class.
    num_candidates: how many anchors of a level compete, twice as many in training. num_proposals, num_samples:
    regions per image that are looked at, and that a loss is taken of. anchor_scale: sides of the square anchors, in
    strides of their level. width: channels of the pyramid.
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
            looks=(LOOK,),
            num_convs=0,
            num_layers=2,
            box_loss="l1",
            num_candidates=num_candidates,
            num_proposals=num_proposals,
            score_threshold=score_threshold,
            overlap=overlap,
            max_detections=max_detections,
            num_samples=num_samples,
            anchor_scale=anchor_scale,
            width=width,
        )


HEADS = {"mask_rcnn": MaskRCNN}
