"""Non-maximum suppression: the authors' answers, and the loop for graphs against the greedy choice."""

import pytest
import torch
from dense.answers import units

from tetravit.boxes.suppression import PAD_SCORE, best, fixed_point, rivals, rows, survivors

UNITS = units()


def test_class_wise_suppression():
    boxes, scores = UNITS["nms_boxes"], UNITS["nms_scores"][:, :-1]
    values, index = best(torch.where(scores > 0.05, scores, PAD_SCORE).flatten()[None], 600)
    candidates, labels = rows(boxes[None], index // 5), index % 5
    kept = survivors(candidates, values > 0, 0.5, labels)
    values, index = best(torch.where(kept, values, PAD_SCORE), 100)
    torch.testing.assert_close(values[0], UNITS["nms_det"][:, 4], atol=0, rtol=0)
    torch.testing.assert_close(rows(candidates, index)[0], UNITS["nms_det"][:, :4], atol=0, rtol=0)
    assert torch.equal(labels.gather(1, index)[0], UNITS["nms_lab"])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("with_labels", [False, True], ids=["one", "labelled"])
def test_the_fixed_point_is_the_greedy_choice(seed, with_labels):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(3, 150, 2, generator=generator) * (20 * (seed + 1))
    boxes = torch.cat((corner, corner + 1 + 60 * torch.rand(3, 150, 2, generator=generator)), dim=-1)
    valid = torch.rand(3, 150, generator=generator) > 0.1
    labels = torch.randint(0, 4, (3, 150), generator=generator) if with_labels else None
    kept = survivors(boxes, valid, 0.5, labels)
    assert torch.equal(fixed_point(rivals(boxes, 0.5, labels), valid), kept)
    assert 0 < kept.sum() < valid.sum()


@pytest.mark.slow
def test_a_long_chain_is_settled():
    """Each box overlaps only its neighbours: every second one stays, and the last needs all rounds."""
    x = torch.arange(64.0)
    boxes = torch.stack((x, 0 * x, x + 3, 0 * x + 1), dim=1)[None]
    kept = fixed_point(rivals(boxes, 0.45), torch.ones(1, 64, dtype=torch.bool))
    assert kept[0].tolist() == [i % 2 == 0 for i in range(64)]


def test_labels_keep_boxes_apart_and_empty_groups_pass():
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 10]]]).repeat(2, 1, 1)
    valid = torch.tensor([[True, True, True], [False, False, False]])
    kept = survivors(boxes, valid, 0.5, torch.tensor([[0, 1, 0]]).repeat(2, 1))
    assert kept.tolist() == [[True, True, False], [False, False, False]]
    assert survivors(torch.zeros(2, 0, 4), torch.zeros(2, 0, dtype=torch.bool), 0.5).shape == (2, 0)


def test_boxes_without_area_suppress_nothing():
    boxes = torch.tensor([[[1.0, 1, 1, 1], [1, 1, 1, 1]]])
    valid = torch.ones(1, 2, dtype=torch.bool)
    assert survivors(boxes, valid, 0.5).all()
    assert fixed_point(rivals(boxes, 0.5), valid).all()
