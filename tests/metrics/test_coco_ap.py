"""COCO's average precision: the fast engine equals pycocotools, and both what one can count by hand."""

import importlib.util

import numpy as np
import pytest
import torch

from tetravit.metrics import coco_ap
from tetravit.metrics.coco_ap import CocoAP, installed
from tetravit.structures import Detections, Target

pytest.importorskip("pycocotools")
pytest.importorskip("faster_coco_eval")
SIDE = 160


def boxes_of(rng, count):
    low = rng.random((count, 2)) * 0.7 * SIDE
    sides = 4 + rng.random((count, 2)) ** 2 * 0.9 * SIDE
    return torch.from_numpy(np.concatenate((low, np.minimum(low + sides, SIDE)), axis=1)).float()


def masks_of(boxes):
    y, x = torch.meshgrid(torch.arange(SIDE) + 0.5, torch.arange(SIDE) + 0.5, indexing="ij")
    x1, y1, x2, y2 = boxes[..., None, None].unbind(1)
    return (((x - (x1 + x2) / 2) / (x2 - x1)) ** 2 + ((y - (y1 + y2) / 2) / (y2 - y1)) ** 2) < 0.25


def random_set(images, detections, *, classes=5, masks=True, seed=0):
    """Pairs of what is there and what was found: near hits, double hits, wrong classes, crowds, empty images."""
    rng = np.random.default_rng(seed)
    for i in range(images):
        boxes = boxes_of(rng, int(rng.integers(0, 9)))
        count = len(boxes)
        labels = torch.from_numpy(rng.integers(0, classes, count))
        found = boxes_of(rng, detections)
        hits = min(3 * count, detections)
        near = rng.integers(0, max(count, 1), hits)
        if hits:
            found[:hits] = boxes[near] + torch.from_numpy(rng.normal(0, 3, (hits, 4))).float()
        found[:, 2:] = torch.maximum(found[:, 2:], found[:, :2] + 2)
        guesses = torch.from_numpy(rng.integers(0, classes, detections))
        guesses[: hits // 2] = labels[near[: hits // 2]]  # the others are right by chance
        target = Target(
            boxes,
            labels,
            masks=masks_of(boxes) if masks else None,
            crowd=torch.from_numpy(rng.random(count) < 0.15),
            image_id=7 * i + 3,
            size=(SIDE, SIDE),
        )
        scores = torch.from_numpy(rng.random(detections).round(2)).float()  # ties too
        scores[:hits] = (1 + scores[:hits]) / 2  # what is near an object is surer
        yield target, Detections(found, scores, guesses, masks_of(found) if masks else None)


def figures(pairs, engine, *, classes=5, kinds=("box", "mask")):
    judge = CocoAP(classes, masks="mask" in kinds, engine=engine)
    for target, found in pairs:
        judge.add(target, found)
    return {kind: judge.average(kind) for kind in kinds}


@pytest.mark.slow
def test_both_engines_agree_with_crowds():
    pairs = list(random_set(40, 20))
    fast, slow = (figures(pairs, engine) for engine in ("faster_coco_eval", "pycocotools"))
    for kind in ("box", "mask"):
        a, b = fast[kind], slow[kind]
        assert a.figures().keys() == b.figures().keys()
        assert 0.01 < b.scores()["ap"] < 0.9
        for name, value in b.figures().items():
            assert a.figures()[name] == pytest.approx(value, abs=1e-9)
        np.testing.assert_allclose(a.precision, b.precision, atol=1e-9)
        np.testing.assert_allclose(a.recall, b.recall, atol=1e-9)
    assert fast["box"].scores() != fast["mask"].scores()


def test_a_perfect_and_a_missed_class():
    box = torch.tensor([[10.0, 10.0, 60.0, 60.0]])
    judge = CocoAP(3)
    judge.add(
        Target(box, torch.tensor([0]), image_id=1, size=(99, 99)),
        Detections(box, torch.ones(1), torch.tensor([0])),
    )
    judge.add(
        Target(box, torch.tensor([1]), image_id=2, size=(99, 99)),
        Detections(box[:0], torch.ones(0), torch.ones(0).long()),
    )
    average = judge.average("box")
    assert average.scores()["ap"] == pytest.approx(0.5)
    assert average.scores()["ap_medium"] == pytest.approx(0.5)
    assert "ap_small" not in average.scores()  # there is no small object
    assert [row["ap"] for row in average.classes()] == [pytest.approx(1.0), pytest.approx(0.0), None]
    assert average.curves()["0.50"] == [0.5] * 101


def test_no_engine_is_said_in_one_line(monkeypatch):
    monkeypatch.setattr(coco_ap.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError) as error:
        CocoAP(2)
    assert str(error.value) == (
        "COCO's average precision needs faster-coco-eval or pycocotools: pip install 'tetravit[coco]'."
    )
    with pytest.raises(ValueError) as error:
        installed("pycocotools")
    assert str(error.value) == "COCO's average precision needs pycocotools: pip install 'tetravit[coco]'."


def test_the_fast_engine_is_the_usual_one():
    assert importlib.util.find_spec("faster_coco_eval")
    assert CocoAP(2).engine == "faster_coco_eval"


@pytest.mark.slow
def test_both_engines_agree_on_two_thousand_images():
    pairs = list(random_set(2000, 100, classes=5, masks=False))
    fast, slow = (
        figures(pairs, engine, classes=5, kinds=("box",))["box"]
        for engine in ("faster_coco_eval", "pycocotools")
    )
    assert fast.figures() == pytest.approx(slow.figures(), abs=1e-9)
    np.testing.assert_allclose(fast.precision, slow.precision, atol=1e-9)
    np.testing.assert_allclose(fast.recall, slow.recall, atol=1e-9)
    assert slow.figures()["ap"] > 0.01
