"""Multiply-adds of the published detectors and segmenters, for the time that a study takes.

`python benchmarks/studies.py --costs` counts them anew and prints the table; a test compares it with two models.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

# Height and width of a picture of 3 to 4 as such weights get it: resized, sides of detectors multiples of 32.
SIDES = {"detect": (800, 1088), "segment": (512, 683)}
# Of an image, in G. Of detectors with all proposals and all detections: an upper bound of the head's part.
GIGA: dict[str, float] = {
    "xcit_tiny_12_p16.coco_mask_rcnn": 180,
    "xcit_tiny_12_p8.coco_mask_rcnn": 239,
    "xcit_small_12_p16.coco_mask_rcnn": 253,
    "xcit_small_12_p8.coco_mask_rcnn": 483,
    "xcit_small_24_p16.coco_mask_rcnn": 327,
    "xcit_small_24_p8.coco_mask_rcnn": 779,
    "xcit_medium_24_p16.coco_mask_rcnn": 459,
    "xcit_medium_24_p8.coco_mask_rcnn": 1261,
    "xcit_tiny_12_p16.ade20k_semantic_fpn": 29,
    "xcit_tiny_12_p8.ade20k_semantic_fpn": 53,
    "xcit_small_12_p16.ade20k_semantic_fpn": 96,
    "xcit_small_12_p8.ade20k_semantic_fpn": 189,
    "xcit_small_24_p16.ade20k_semantic_fpn": 126,
    "xcit_small_24_p8.ade20k_semantic_fpn": 309,
    "xcit_medium_24_p16.ade20k_semantic_fpn": 216,
    "xcit_medium_24_p8.ade20k_semantic_fpn": 541,
    "xcit_tiny_12_p16.ade20k_upernet": 294,
    "xcit_tiny_12_p8.ade20k_upernet": 317,
    "xcit_small_12_p16.ade20k_upernet": 325,
    "xcit_small_12_p8.ade20k_upernet": 418,
    "xcit_small_24_p16.ade20k_upernet": 355,
    "xcit_small_24_p8.ade20k_upernet": 538,
    "xcit_medium_24_p16.ade20k_upernet": 409,
    "xcit_medium_24_p8.ade20k_upernet": 734,
    "twins_pcpvt_small.ade20k_upernet": 312,
    "twins_pcpvt_base.ade20k_upernet": 334,
    "twins_pcpvt_large.ade20k_upernet": 360,
    "twins_svt_small.ade20k_upernet": 302,
    "twins_svt_base.ade20k_upernet": 345,
    "twins_svt_large.ade20k_upernet": 393,
}


def macs(weights: Sequence[str]) -> float:
    """Multiply-adds of an image for all of some published weights."""
    return 1e9 * sum(GIGA.get(name, 0.0) for name in weights)


def count(name: str) -> int:
    """Multiply-adds of an image of `SIDES` for published weights: backbone, pyramid and head, on shapes alone."""
    import torch

    from tetravit.benchmark.flops import count_inference_macs
    from tetravit.models import create_detector, create_segmenter
    from tetravit.weights import CHECKPOINTS

    row = CHECKPOINTS[name]
    create = create_detector if row.task == "detect" else create_segmenter
    with torch.device("meta"):
        model = create(row.model, head=row.head, num_classes=row.num_classes, **row.options).eval()
        images = torch.empty(1, 3, *SIDES[row.task])
    return count_inference_macs(model if row.task == "segment" else _regions(model), images)


def _regions(detector: "nn.Module") -> "nn.Module":
    """A two-stage detector as a module of images alone: its branches get features of as many regions as they may."""
    from typing import Any

    from torch import Tensor, nn

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = detector

        def forward(self, images: Tensor) -> None:
            model: Any = self.model
            head = model.head
            head(model.feature_maps(images))
            for boxes, masks in zip(head.boxes, head.masks, strict=True):
                width = masks.score.in_channels
                boxes(images.new_empty(head.num_proposals, width, 7, 7))
                masks(images.new_empty(head.max_detections, width, 14, 14))

    return Whole()
