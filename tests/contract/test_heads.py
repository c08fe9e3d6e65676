"""Every detection head keeps its promise, on any maps. A new head is covered the moment it offers HEADS."""

import pytest
import torch

from tetravit.heads import HEADS, heads_of
from tetravit.structures import Target

SIZES = torch.tensor([[64, 96], [60, 40]])
STRIDES = (4, 8, 16, 32)
NARROW = {"width": 16, "max_detections": 7}


def built(name):
    torch.manual_seed(0)
    return HEADS[name]((8, 12, 16, 20), STRIDES, num_classes=3, **NARROW)


def maps(channels=(8, 12, 16, 20)):
    return [
        torch.randn(2, c, 64 // s, 96 // s, requires_grad=True)
        for c, s in zip(channels, STRIDES, strict=True)
    ]


def targets():
    boxes = torch.tensor([[4.0, 6.0, 40.0, 50.0], [30.0, 8.0, 90.0, 60.0]])
    masks = torch.ones(2, 64, 96, dtype=torch.bool)
    nothing = Target(
        torch.empty(0, 4), torch.empty(0, dtype=torch.int64), torch.empty(0, 64, 96, dtype=torch.bool)
    )
    return [Target(boxes, torch.tensor([2, 0]), masks), nothing]


@pytest.mark.parametrize("name", heads_of("detect"))
def test_losses_are_finite_and_reach_maps_and_parameters(name):
    head, given = built(name).train(), maps()
    losses = head.loss(head(given, SIZES, targets()), targets(), SIZES)
    assert all(loss.ndim == 0 and loss.isfinite() for loss in losses.values())
    torch.stack(list(losses.values())).sum().backward()
    for i, x in enumerate(given):
        assert (x.grad is not None) == (i >= head.first_map)
    assert [n for n, p in head.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", heads_of("detect"))
def test_an_empty_batch_still_trains_every_parameter(name):
    """Ranks average gradients: each must have one for every parameter, whatever its images hold."""
    head = built(name).train()
    losses = head.loss(head(maps(), SIZES, [targets()[1]] * 2), [targets()[1]] * 2, SIZES)
    torch.stack(list(losses.values())).sum().backward()
    assert [n for n, p in head.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.parametrize("name", heads_of("detect"))
def test_answers_lie_inside_the_image_best_first(name):
    head = built(name).eval()
    head.score_threshold = 0.0
    with torch.no_grad():
        outputs = head(maps())
        picked = head.decode(outputs, SIZES)
    assert picked.valid.any(dim=1).all()
    assert picked.boxes.shape[1] <= 7
    for i, (height, width) in enumerate(SIZES.tolist()):
        boxes, scores = picked.boxes[i, picked.valid[i]], picked.scores[i, picked.valid[i]]
        assert (boxes >= 0).all()
        assert (boxes <= torch.tensor([width, height, width, height])).all()
        assert (boxes[:, 2:] >= boxes[:, :2]).all()
        assert (scores.diff() <= 0).all()
        assert picked.labels[i].max() < 3
    if head.has_masks:
        masks = head.mask_probabilities(outputs, picked.boxes, picked.labels)
        assert masks.shape == (*picked.labels.shape, 28, 28)
        assert ((masks >= 0) & (masks <= 1)).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", heads_of("detect"))
def test_the_same_seed_gives_the_same_loss(name):
    head, given = built(name).train(), maps()
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        results.append(
            {k: v.item() for k, v in head.loss(head(given, SIZES, targets()), targets(), SIZES).items()}
        )
    assert results[0] == results[1]
