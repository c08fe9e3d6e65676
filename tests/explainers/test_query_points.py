"""`tetravit.explain(detector, picture, "query-points")`."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import tetravit
from tetravit.draw.heat import Scale
from tetravit.explainers.parts.pictures import _panel
from tetravit.explainers.query_points import rasterised
from tetravit.models import create_detector

BACKBONE = {"dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1), "window_size": (4, 4, 4, 2)}
HEAD = {"num_queries": 8, "max_detections": 6, "width": 16, "num_heads": 2, "hidden": 32, "encoder_layers": 1}


def detector(head="dino_detr", options=HEAD):
    torch.manual_seed(0)
    return create_detector("gcvit_xxtiny", head=head, num_classes=4, head_options=options, **BACKBONE).eval()


@pytest.fixture(scope="module")
def model():
    return detector()


@pytest.fixture(scope="module")
def picture():
    return Image.new("RGB", (96, 64), (90, 120, 40))


def test_points_and_boxes_of_every_layer(model, picture):
    found = tetravit.explain(model, picture, "query-points", layer="all", detection=1, size="own")
    assert [one.layer for one in found.maps] == [
        f"transformer.decoder.layers.{i}.cross_attn" for i in range(6)
    ]
    for one in found.maps:
        assert one.values.shape == (2, 16, 24)
        assert (one.stride, one.centre) == (4, 1.5)
        torch.testing.assert_close(one.values.sum(dim=(1, 2)), one.seen)
        weights = torch.tensor(one.details["weights"])
        assert weights.shape == (2, 4, 4)
        torch.testing.assert_close(weights.sum(dim=(1, 2)), torch.ones(2))
        points = torch.tensor(one.details["points"])
        assert torch.equal(rasterised(points.flatten(1, 2), weights.flatten(1, 2), 64, 96), one.values)
    first = found.maps[0]
    assert len(first.details["boxes"]) == 7
    assert first.samples.shape == (2, 16, 3)
    assert first.mean().samples.shape == (1, 32, 3)
    assert torch.equal(first.select(1).samples[0], first.samples[1])
    assert first.box == pytest.approx(first.details["boxes"][0], abs=0.01)


def test_the_picture_shows_each_point_and_the_box_of_the_query(model, picture):
    found = tetravit.explain(model, picture, "query-points", detection=1, size="own")
    one = found.maps[0]
    points = torch.tensor(
        [[[24.0, 16.0, 1.0], [72.0, 48.0, 0.25]]]
    )  # x y in the input, 96 x 64 pixels; weight
    shown = replace(
        one.select(0), values=one.values[0], slices=(), samples=points, box=(48.0, 32.0, 90.0, 60.0)
    )
    drawn = np.asarray(_panel(found, shown, Scale(0.0, 1.0), False, False, True)).astype(int)
    pale = np.array([255 - 0.5 * (255 - c) for c in (90, 120, 40)])
    other = (abs(drawn - pale).max(axis=2) > 2).astype(int)  # 320 pixels wide
    at = [(round(x * 320 / 96), round(y * 320 / 96)) for x, y in ((24, 16), (72, 48))]
    large, small = (other[y - 12 : y + 12, x - 12 : x + 12].sum() for x, y in at)
    assert 110 < large < 140  # pixels of a disc of 12, and its edge
    assert 28 < small < 42  # a quarter
    assert tuple(drawn[150, 161]) == (224, 32, 32)  # the left side of the box


def test_cells_hold_the_weights_inside_the_picture():
    points = torch.tensor([[[0.0, 0.0], [3.9, 3.9], [4.0, 0.0], [-0.1, 2.0], [9.0, 6.9], [10.0, 1.0]]])
    sums = rasterised(points, torch.tensor([[1.0, 2.0, 4.0, 8.0, 16.0, 32.0]]), 7, 10)
    assert sums.tolist() == [[[3.0, 4.0, 0.0], [0.0, 0.0, 16.0]]]


def test_the_points_are_those_that_the_layer_samples(model):
    """At a new head's weights every point of a box lies on a ray from its middle."""
    maps = model.feature_maps(torch.zeros(1, 3, 64, 96))
    with torch.no_grad():
        outputs, where = model.head.attention_points(maps)
        _, boxes = model.head.steps(outputs, torch.tensor([[64, 96]]))
    assert where.points.shape == (6, 1, 8, 2, 4, 4, 2)
    first = outputs.proposals.boxes[0] * torch.tensor([96.0, 64.0, 96.0, 64.0])
    # Heads 0 and 1 look right and left: point p lies (p + 1) / 4 of half a box away.
    for head, side in ((0, 1.0), (1, -1.0)):
        want = first[:, 0, None] + side * first[:, 2, None] / 2 * torch.arange(1, 5) / 4
        torch.testing.assert_close(where.points[0, 0, :, head, 0, :, 0], want)
    assert boxes.shape == (7, 1, 6, 4)


def test_other_heads_have_no_queries(picture):
    model = detector("retinanet", {"width": 8})
    with pytest.raises(ValueError) as error:
        tetravit.explain(model, picture, "query-points")
    assert "it needs the head dino_detr; this model has retinanet" in str(error.value)


def test_a_detection_that_is_not_there(model, picture):
    with pytest.raises(ValueError) as error:
        tetravit.explain(model, picture, "query-points", detection=9)
    assert str(error.value) == "Detection 9 does not exist: the image has detections 0 to 5."
