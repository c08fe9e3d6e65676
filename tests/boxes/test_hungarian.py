import itertools
import sys

import pytest
import torch
from detr.inputs import Golden, rand, randn, small_boxes, targets

from tetravit.boxes.coding import corners, inverse_sigmoid, relative
from tetravit.boxes.hungarian import cost, generalized_iou, match

GOLDEN = Golden("detr_units")
LOGITS = 3 * randn("focal:logits", (2, 12, 91))
BOXES = torch.stack([small_boxes(rand(f"match:box{i}", (12, 4))) for i in range(2)])


def test_costs_and_pairs_are_the_authors():
    labels, truth = targets()
    for i in range(2):
        GOLDEN.check(f"match_cost{i}", cost(LOGITS[i], BOXES[i], labels[i], truth[i]))
    pairs = match(LOGITS, BOXES, labels, truth)
    assert [[q.tolist(), o.tolist()] for q, o in pairs] == GOLDEN.meta["match_indices"]


def test_overlap_is_the_authors_without_area_too():
    a, b = (small_boxes(rand(name, (n, 4))) for name, n in (("box:a", 6), ("box:b", 4)))
    a[5, 2:] = 0
    GOLDEN.check("giou", generalized_iou(corners(a)[:, None], corners(b)[None]))


def test_the_inverse_of_the_sigmoid_is_the_authors():
    GOLDEN.check("invsig_y", inverse_sigmoid(GOLDEN["invsig_x"]))


def test_the_cheapest_of_all_assignments_is_found():
    torch.manual_seed(0)
    logits, box = torch.randn(1, 5, 4), torch.rand(1, 5, 4)
    label, truth = torch.tensor([1, 3, 3]), torch.rand(3, 4)
    costs = cost(logits[0], box[0], label, truth)
    least = min(sum(costs[q, o] for o, q in enumerate(p)) for p in itertools.permutations(range(5), 3))
    ((queries, objects),) = match(logits, box, [label], [truth])
    torch.testing.assert_close(costs[queries, objects].sum(), least)
    assert queries.tolist() == sorted(queries.tolist())


def test_more_objects_than_queries_leave_the_dearest_out():
    ((queries, objects),) = match(
        torch.randn(1, 2, 3), torch.rand(1, 2, 4), [torch.tensor([0, 1, 2])], [torch.rand(3, 4)]
    )
    assert queries.tolist() == [0, 1]
    assert len(set(objects.tolist())) == 2


def test_images_without_objects_have_no_pairs():
    empty = torch.empty(0, dtype=torch.int64)
    pairs = match(torch.randn(2, 4, 3), torch.rand(2, 4, 4), [empty] * 2, [torch.empty(0, 4)] * 2)
    assert [(len(q), q.dtype, len(o)) for q, o in pairs] == [(0, torch.int64, 0)] * 2
    assert match(torch.empty(0, 4, 3), torch.empty(0, 4, 4), [], []) == []


def test_undefined_predictions_are_matched_all_the_same():
    ((queries, _),) = match(
        torch.full((1, 4, 3), torch.nan), torch.rand(1, 4, 4), [torch.tensor([0])], [torch.rand(1, 4)]
    )
    assert len(queries) == 1


def test_without_scipy(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(ValueError) as error:
        match(torch.randn(1, 4, 3), torch.rand(1, 4, 4), [torch.tensor([0])], [torch.rand(1, 4)])
    assert str(error.value) == (
        "Matching queries to objects needs scipy: pip install scipy, or tetravit with its extra coco."
    )


def test_boxes_relative_to_their_image_and_back():
    size, box = torch.tensor([200, 100]), torch.tensor([[10.0, 20.0, 30.0, 60.0]])
    got = relative(box, size)
    torch.testing.assert_close(got, torch.tensor([[0.2, 0.2, 0.2, 0.2]]))
    torch.testing.assert_close(corners(got) * torch.tensor([100.0, 200.0, 100.0, 200.0]), box)
