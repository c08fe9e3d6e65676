"""Segmenters and detectors: regions, chosen detections with their boxes fixed, layers of the backbone."""

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from tetravit.explainers import explain
from tetravit.explainers.base import Request
from tetravit.explainers.parts.detections import _anchors, _match, _proposals
from tetravit.explainers.parts.targets import target_of
from tetravit.models import create_detector, create_segmenter
from tetravit.models.detector import pad
from tetravit.structures import Preprocess

HEADS = {
    "retinanet": {"width": 16, "score_threshold": 0.0, "max_detections": 5},
    "mask_rcnn": {"width": 16, "score_threshold": 0.0, "max_detections": 5, "num_proposals": 20},
    "cascade": {"width": 16, "score_threshold": 0.0, "max_detections": 5, "num_proposals": 20},
    "dino_detr": {
        "width": 32,
        "num_queries": 10,
        "max_detections": 5,
        "hidden": 32,
        "encoder_layers": 1,
        "decoder_layers": 2,
    },
}


@pytest.fixture(scope="module", params=HEADS)
def detector(request):
    torch.manual_seed(0)
    model = create_detector(
        "xcit_nano_12_p16", head=request.param, num_classes=3, head_options=HEADS[request.param], depth=12
    )
    with torch.no_grad():
        for p in model.head.parameters():
            p.add_(0.05 * torch.randn_like(p))
    model.input = Preprocess(size=64, mode="fit", longest=96, interpolation="bilinear")
    return model.eval()


@pytest.fixture(scope="module")
def segmenter():
    torch.manual_seed(0)
    model = create_segmenter("xcit_nano_12_p16", head="semantic_fpn", num_classes=3)
    model.input = Preprocess(size=64, mode="fit", longest=96, interpolation="bilinear")
    return model.eval()


@pytest.mark.slow
def test_the_logit_is_the_one_that_became_the_detection(detector):
    images = torch.randn(1, 3, 64, 90)
    found = detector.detect(images)[0]
    assert len(found.scores) == 5
    sizes = torch.tensor([[64, 90]])
    for i in range(5):
        target = target_of(detector, images, Request(options={"detection": i}))
        score, box = float(found.scores[i]), found.boxes[i]
        if detector.head_name in ("retinanet", "dino_detr"):
            assert torch.tensor(target.score).sigmoid() == pytest.approx(score, abs=1e-5)
        with torch.no_grad():
            outputs = detector.head(detector.feature_maps(pad(images)), sizes)
        if detector.head_name == "retinanet":
            logits, boxes = _anchors(detector.head, outputs, sizes)
            chosen = _match(logits.sigmoid()[:, target.class_], boxes, box, score)
            torch.testing.assert_close(boxes[chosen], box, atol=1e-3, rtol=0)
        elif detector.head_name != "dino_detr":
            logits, boxes = _proposals(detector.head, outputs, sizes, target.class_)
            scores = logits.softmax(dim=1)[:, target.class_]
            chosen = _match(scores, boxes, box, score)
            assert float(scores[chosen]) == pytest.approx(score, abs=1e-5)
            torch.testing.assert_close(boxes[chosen], box, atol=1e-3, rtol=0)


def test_every_head_has_grad_cam_over_its_maps(detector):
    image = torch.rand(3, 64, 90)
    found = explain(detector, image, "gradcam", detection=1)
    mean, *levels = found.maps
    assert [one.layer for one in levels] == [f"feature_maps.{i}" for i in range(4)]
    assert mean.layer == ", ".join(one.layer for one in levels)
    assert found.view.share == 1.0
    assert found.maps[0].target.startswith("detection 1: class ")
    (one,) = explain(detector, image, "hirescam", layer="feature_maps.2").maps
    assert one.grid == (4, 6)
    assert found.draw().width > 300


def test_occlusion_of_a_detection_starts_from_its_score(detector):
    (one,) = explain(detector, torch.rand(3, 64, 90), "occlusion", square=64, detection=0).maps
    assert 0 < one.details["score"] <= 1


@pytest.mark.slow
def test_a_class_of_a_region_has_a_map(segmenter):
    image = torch.rand(3, 64, 90)
    by_point = explain(segmenter, image, "gradcam", query=(30, 20), class_=1)
    assert by_point.maps[0].target == "class 1, 1 of 384 cells"
    by_box = explain(segmenter, image, "hirescam", region=(0, 0, 45, 32), class_=1, layer="feature_maps.3")
    assert by_box.maps[0].target == "class 1, 96 of 384 cells"
    whole = explain(segmenter, image, "layercam")
    assert whole.maps[0].target.endswith("of 384 cells")
    drop = explain(segmenter, image, "occlusion", query=(30, 20), square=32)
    assert drop.maps[0].signed


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"detection": 7}, "Detection 7 does not exist: the image has detections 0 to 4."),
        (
            {"detection": 0, "query": (3, 3)},
            "A query chooses the region of a segmenter; this model is a detector.",
        ),
        ({"region": (0, 0, 5, 5)}, "region is for segmenters; the model is a detector."),
    ],
)
def test_mistakes_with_detectors_are_one_line(detector, given, message):
    with pytest.raises(ValueError) as error:
        explain(detector, torch.rand(3, 64, 90), "gradcam", **given)
    assert str(error.value) == message


def test_an_image_without_detections_is_one_line(detector):
    if detector.head_name != "retinanet":
        pytest.skip("one head is enough")
    detector.head.score_threshold, kept = 1.0, detector.head.score_threshold
    try:
        with pytest.raises(ValueError, match=r"^There is no detection in this image to explain\.$"):
            explain(detector, torch.rand(3, 64, 90), "gradcam")
    finally:
        detector.head.score_threshold = kept


def test_a_region_outside_of_the_picture_is_one_line(segmenter):
    with pytest.raises(ValueError) as error:
        explain(segmenter, torch.rand(3, 64, 90), "gradcam", region=(0, 0, 95, 5))
    assert str(error.value) == "region is x1,y1,x2,y2 in a picture of 90 x 64 pixels; got 0,0,95,5."


def test_overlap_of_the_likeness_is_that_of_boxes(detector):
    images = torch.randn(1, 3, 64, 90)
    target = target_of(detector, images, Request(options={"detection": 0}))
    found = detector.detect(images)[0]
    assert float(target.probability(images)) >= float(found.scores[0]) - 1e-5
    assert float(box_iou(target.box[None], found.boxes[:1])) == pytest.approx(1.0)


def test_the_box_of_a_detection_is_in_pixels_of_the_picture_and_drawn(detector):
    image = torch.rand(3, 100, 140)
    prepared = detector.preprocess(image)
    found = detector.detect(prepared[None], output_sizes=[[100, 140]])[0]
    e = explain(detector, image, "occlusion", detection=1, square=64)
    assert e.maps[0].details["box"] == pytest.approx(found.boxes[1].tolist(), abs=0.02)
    score = 100 * float(found.scores[1])
    assert e.maps[0].target == f"detection 1: class {int(found.labels[1])} {score:.0f} %"
    drawn = np.asarray(e.draw())
    assert (drawn == (224, 32, 32)).all(axis=2).any()


def test_the_cells_of_a_region_are_its_box(segmenter):
    image = torch.rand(3, 64, 90)
    e = explain(segmenter, image, "hirescam", region=(20, 10, 40, 30), layer="feature_maps.3")
    left, top, right, bottom = e.maps[0].details["box"]
    assert (left <= 20, top <= 10, right >= 40, bottom >= 30) == (True,) * 4
    assert (right - left) * (bottom - top) < 28 * 28
    whole = explain(segmenter, image, "hirescam", layer="feature_maps.3")
    assert "box" not in whole.maps[0].details
