"""What the studies of detectors and segmenters cost: the kept counts, and the line before they start."""

import pytest

from tetravit.cli.study import plan
from tetravit.studies import STUDIES
from tetravit.studies.parts import costs


def test_every_published_model_has_its_count():
    assert list(costs.GIGA) == [*STUDIES["coco"].weights, *STUDIES["ade20k"].weights]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["xcit_tiny_12_p16.coco_mask_rcnn", "twins_svt_small.ade20k_upernet"])
def test_the_kept_counts_are_those_of_the_models(name):
    assert round(costs.count(name) / 1e9) == costs.GIGA[name]


@pytest.mark.parametrize(
    ("study", "images", "weights"),
    [("coco", 5_000, "xcit_tiny_12_p16.coco_mask_rcnn"), ("ade20k", 2_000, "twins_svt_small.ade20k_upernet")],
)
def test_the_plan_has_their_time(monkeypatch, study, images, weights):
    monkeypatch.setattr("tetravit.benchmark.speed.product_flops", lambda device: 1e12)
    flops = 2e9 * images * costs.GIGA[weights]
    (line,) = (
        text
        for text in plan(STUDIES[study], {"weights": weights, "images": None}, "cpu")
        if text.startswith("Cost")
    )
    assert line.startswith(f"Cost: {flops:.1e} operations; at 40% of the peak ")
    half = plan(STUDIES[study], {"weights": weights, "images": images // 2}, "cpu")
    assert any(text.startswith(f"Cost: {flops / 2:.1e} operations") for text in half)
