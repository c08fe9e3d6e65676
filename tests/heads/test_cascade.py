"""Cascade Mask R-CNN equals mmdet's, with the weights of a published layout."""

import pytest
import torch
from dense.detection import Case

pytestmark = pytest.mark.slow  # whole detectors and segmentors


@pytest.fixture(scope="module")
def case():
    return Case.build("cascade_mask_rcnn_gcvit_tiny", "gcvit_tiny", "cascade")


def test_names_go_there_and_back(case):
    case.check_names()


def test_maps(case):
    case.check_maps()


def test_proposals(case):
    case.check_proposals()


def test_box_and_mask_branches(case):
    case.check_branches()


def test_detections(case, monkeypatch):
    case.check_detections(monkeypatch)


def test_losses_and_gradients(case, monkeypatch):
    """Of the ReLUs of hundreds of regions in three stages, some are within rounding of zero.

    Several threads add up in another order, and other ReLUs flip: one thread, as in the workers of pytest.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        case.check_losses(monkeypatch, gradient_bound=5e-4)
    finally:
        torch.set_num_threads(threads)
