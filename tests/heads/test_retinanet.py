"""RetinaNet equals mmdet's, with the weights of a published layout."""

import pytest
from dense.detection import Case

pytestmark = pytest.mark.slow  # whole detectors and segmentors


@pytest.fixture(scope="module")
def case():
    return Case.build("retinanet_svt_s", "twins_svt_small", "retinanet")


def test_names_go_there_and_back(case):
    case.check_names()


def test_maps(case):
    case.check_maps()


def test_detections(case, monkeypatch):
    case.check_detections(monkeypatch)


def test_losses_and_gradients(case, monkeypatch):
    case.check_losses(monkeypatch)
