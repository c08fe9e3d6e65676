"""What a detector is given is checked: one line per fault."""

import re
from dataclasses import replace

import pytest
import torch
from tests.toys import TOYS
from torchvision.ops import box_iou

from tetravit.models import create_detector
from tetravit.structures import Batch, Target

NAME = "xcit_nano_12_p16"
BOX, LABEL = torch.tensor([[4.0, 4.0, 40.0, 40.0]]), torch.tensor([1])
MASK = torch.ones(1, 64, 64, dtype=torch.bool)
GOOD = Target(BOX, LABEL, MASK)
IMAGES = torch.zeros(2, 3, 64, 64)


@pytest.fixture(scope="module")
def detector():
    return create_detector(NAME, num_classes=3, head_options={"width": 8}, **TOYS[NAME])


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ({"boxes": BOX}, "targets holds a Target per image; got a dict for b.png."),
        (replace(GOOD, boxes=BOX[0]), "boxes are (M, 4), x1 y1 x2 y2 in pixels; got (4,) in b.png."),
        (replace(GOOD, boxes=BOX[:, :3]), "boxes are (M, 4), x1 y1 x2 y2 in pixels; got (1, 3) in b.png."),
        (replace(GOOD, boxes=BOX.tolist()), "boxes are (M, 4), x1 y1 x2 y2 in pixels; got a list in b.png."),
        (replace(GOOD, boxes=BOX.long()), "boxes are floats; got torch.int64 in b.png."),
        (
            replace(GOOD, labels=torch.tensor([1, 2])),
            "labels are (M,), one per box: 1 boxes; got (2,) in b.png.",
        ),
        (replace(GOOD, labels=torch.tensor([1.0])), "labels are integers; got torch.float32 in b.png."),
        (
            replace(GOOD, masks=MASK[:, :32]),
            "masks are (M, Hi, Wi), (1, 64, 64) here; got (1, 32, 64) in b.png.",
        ),
        (
            replace(GOOD, masks=MASK.expand(2, 64, 64)),
            "masks are (M, Hi, Wi), (1, 64, 64) here; got (2, 64, 64) in b.png.",
        ),
        (replace(GOOD, masks=MASK.float()), "masks are bool; got torch.float32 in b.png."),
        (
            replace(GOOD, crowd=torch.zeros(3, dtype=torch.bool)),
            "crowd is (M,), one per box: 1 boxes; got (3,) in b.png.",
        ),
    ],
)
def test_a_target_that_does_not_fit(detector, target, text):
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        detector.loss(Batch(IMAGES, [GOOD, target], names=["a.png", "b.png"]))


@pytest.mark.parametrize(
    ("batch", "text"),
    [
        (Batch(IMAGES, [GOOD]), "targets holds one Target per image: 2 images; got 1 targets."),
        (Batch(IMAGES, None), "targets is a list with a Target per image; got a NoneType."),
        (Batch(IMAGES[:0], []), "images is (B, C, Hi, Wi) with B of 1 or more; got (0, 3, 64, 64)."),
        (Batch(IMAGES[0], [GOOD]), "images is (B, C, Hi, Wi) with B of 1 or more; got (3, 64, 64)."),
        (
            Batch(IMAGES.byte(), [GOOD, GOOD]),
            "images are floats, normalized; got torch.uint8: model.preprocess makes them.",
        ),
        (
            Batch(list(IMAGES), [GOOD, GOOD]),
            "images is one tensor (B, C, Hi, Wi), padded where sizes differ; got a list.",
        ),
        (
            Batch(IMAGES, [replace(GOOD, masks=None)] * 2),
            "The head trains on masks; no target of the batch has any: give masks, or take a head without them"
            " (head='retinanet').",
        ),
    ],
)
def test_a_batch_that_does_not_fit(detector, batch, text):
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        detector.loss(batch)


@pytest.mark.parametrize(
    ("box", "text"),
    [
        (
            [4, 4, float("nan"), 40],
            "A box is not finite: [4.0, 4.0, nan, 40.0] in b.png (1 of 2 boxes of the batch).",
        ),
        (
            [4, 4, 40, float("inf")],
            "A box is not finite: [4.0, 4.0, 40.0, inf] in b.png (1 of 2 boxes of the batch).",
        ),
        (
            [40, 4, 8, 40],
            "A box is inverted; boxes are x1 y1 x2 y2, not x y width height: [40.0, 4.0, 8.0, 40.0] in b.png"
            " (1 of 2 boxes of the batch).",
        ),
        (
            [70, 4, 80, 40],
            "A box lies outside: [70.0, 4.0, 80.0, 40.0] in b.png, 64 x 64 pixels (1 of 2 boxes of the batch).",
        ),
        (
            [-9, -9, -1, 0],
            "A box lies outside: [-9.0, -9.0, -1.0, 0.0] in b.png, 64 x 64 pixels (1 of 2 boxes of the batch).",
        ),
    ],
)
def test_a_box_that_is_none(detector, box, text):
    target = replace(GOOD, boxes=torch.tensor([box], dtype=torch.float32))
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        detector.loss(Batch(IMAGES, [GOOD, target], names=["a.png", "b.png"]))


def test_boxes_in_the_padding_and_shares_of_the_image(detector):
    low = replace(GOOD, boxes=torch.tensor([[4.0, 44.0, 40.0, 60.0]]))
    sizes = torch.tensor([[64, 64], [40, 64]])
    with pytest.raises(
        ValueError, match=r"^A box lies outside: \[4.0, 44.0, 40.0, 60.0\] in image 1 of the batch, 64 x 40"
    ):
        detector.loss(Batch(IMAGES, [GOOD, low], sizes=sizes))
    shares = replace(GOOD, boxes=BOX / 64)
    with pytest.raises(
        ValueError,
        match=r"^boxes are in pixels; all 2 of the batch lie in 0\.\.1: multiply by the width and height\.$",
    ):
        detector.loss(Batch(IMAGES, [shares, shares]))


def test_a_box_without_an_area_and_a_crowd_are_background():
    detector = create_detector(
        NAME, head="retinanet", num_classes=3, head_options={"width": 8}, **TOYS[NAME]
    ).eval()
    nothing = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    flat = Target(torch.tensor([[4.0, 4.0, 4.0, 40.0]]), LABEL)
    crowd = Target(BOX, LABEL, crowd=torch.tensor([True]))
    plain = detector.loss(Batch(IMAGES, [nothing, nothing]))
    assert plain == detector.loss(Batch(IMAGES, [flat, crowd]))


def test_some_images_may_lack_masks_and_all_may_lack_objects(detector):
    nothing = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    for targets in ([GOOD, replace(GOOD, masks=None)], [nothing, nothing], (GOOD, nothing)):
        assert all(x.isfinite() for x in detector.loss(Batch(IMAGES, targets)).values())


def test_a_head_without_masks_keeps_every_box():
    detector = create_detector(NAME, head="retinanet", num_classes=3, head_options={"width": 8}, **TOYS[NAME])
    torch.manual_seed(0)
    plain = detector.eval().loss(Batch(IMAGES, [replace(GOOD, masks=None)] * 2))
    empty = detector.loss(Batch(IMAGES, [replace(GOOD, masks=torch.zeros_like(MASK))] * 2))
    assert plain == empty


def test_detect_refuses_lists_and_empty_batches(detector):
    with pytest.raises(ValueError, match=r"^images is one tensor"):
        detector.detect(list(IMAGES))
    with pytest.raises(ValueError, match=r"with B of 1 or more; got \(0, 3, 64, 64\)\.$"):
        detector.detect(IMAGES[:0])


def overlap(found):
    return box_iou(found.boxes, found.boxes).fill_diagonal_(0).max()


def test_more_detections_than_usual_and_suppression_over_all_classes(detector):
    detector.eval()
    torch.manual_seed(0)
    images = torch.randn(1, 3, 128, 128)
    detector.head.score_threshold = 0.0
    (usual,) = detector.detect(images)
    (few,) = detector.detect(images, max_detections=7)
    (more,) = detector.detect(images, max_detections=150)
    (agnostic,) = detector.detect(images, max_detections=150, class_agnostic=True)
    assert (len(usual.boxes), len(few.boxes)) == (100, 7)
    assert 100 < len(more.boxes) <= 150
    assert overlap(agnostic) <= detector.head.overlap + 1e-5 < overlap(more)
    with pytest.raises(ValueError, match=r"^max_detections is 1 or more; got 0\.$"):
        detector.detect(images, max_detections=0)
