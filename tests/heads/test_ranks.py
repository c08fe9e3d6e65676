"""Losses per candidate of detectors are those of the whole batch, however many ranks share its images."""

import pytest
import torch

from tetravit.data.datasets.shapes import ShapesDet
from tetravit.layers.batch_norm import BatchNorm
from tetravit.models import create_detector
from tetravit.seeds import micro_batch
from tetravit.structures import Batch

BACKBONE = {"dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1], "window_size": [4, 4, 4, 2]}
SMALL = {"width": 16, "num_candidates": 60, "anchor_scale": 4.0}
HEADS = {
    "mask_rcnn": {**SMALL, "num_samples": 24},
    "cascade": {**SMALL, "num_samples": 24},
    "retinanet": {"width": 16},
}


def drawings(places):
    data = ShapesDet(None, "train", size=64)
    samples = [data[i] for i in places]
    return Batch(torch.stack([s.image for s in samples]) / 255.0, [s.target for s in samples])


def losses(model, size, counts=None):
    """The losses of the ranks and the gradients of their mean; counts: what each rank gave at each gathering."""
    model.zero_grad()
    totals, given = [], [[] for _ in range(size)]
    for rank in range(size):
        batch = drawings(range(rank, 4, size))

        def gather(value, rank=rank):
            given[rank].append(value)
            return [value] * size if counts is None else [other[len(given[rank]) - 1] for other in counts]

        with (
            micro_batch(0, 3, rows=len(batch), rank=rank, world_size=size),
            model.whole_step([batch], gather),
        ):
            total = torch.stack(list(model.loss(batch).values())).sum()
            (total / size).backward()
        totals.append(total.item())
    gradients = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return sum(totals) / size, gradients, given


@pytest.mark.parametrize("head", ["mask_rcnn", "retinanet", pytest.param("cascade", marks=pytest.mark.slow)])
def test_one_and_four_ranks(head):
    torch.manual_seed(0)
    model = create_detector("gcvit_xxtiny", head=head, num_classes=8, head_options=HEADS[head], **BACKBONE)
    model.train()
    for module in model.modules():
        if isinstance(module, BatchNorm):  # a run shares their statistics
            module.eval()
    one, wanted, _ = losses(model, 1)
    alone, _, counts = losses(model, 4)
    assert len({len(rank) for rank in counts}) == 1  # all ranks gather as often
    loss, gradients, _ = losses(model, 4, counts)
    assert loss == pytest.approx(one, abs=1e-5)
    assert (gradients - wanted).norm() < 1e-4 * wanted.norm()
    assert alone != pytest.approx(one, abs=1e-3)  # each rank for itself is another loss
