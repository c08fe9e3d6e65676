"""mIoU from totals: what scikit-learn's confusion matrix gives, and labels that are no class."""

import math
import re

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix

from tetravit.metrics.miou import BEYOND, IGNORE, MeanIoU, pixel_accuracy, unknown


def maps(K, seed, shape=(40, 50)):
    generator = torch.Generator().manual_seed(seed)
    predicted = torch.randint(K, shape, generator=generator)
    labels = torch.where(
        torch.rand(shape, generator=generator) < 0.6, predicted, labels_of(K, shape, generator)
    )
    labels[:5] = IGNORE
    return predicted, labels.to(torch.uint8)


def labels_of(K, shape, generator):
    return torch.randint(K, shape, generator=generator)


@pytest.mark.parametrize("K", [1, 3, 150, 255])
def test_scores_are_those_of_scikit_learns_confusion_matrix(K):
    found, theirs = MeanIoU(K), np.zeros((K, K), np.int64)
    for seed in range(3):
        predicted, labels = maps(K, seed)
        found.update(predicted, labels)
        kept = (labels != IGNORE).numpy()
        theirs += confusion_matrix(labels.numpy()[kept], predicted.numpy()[kept], labels=np.arange(K))
    np.testing.assert_array_equal(found.confusion, theirs)
    right = np.diag(theirs)
    iou = right / (theirs.sum(0) + theirs.sum(1) - right)
    scores = found.result()
    assert scores["miou"] == pytest.approx(np.nanmean(iou))
    assert scores["macc"] == pytest.approx(np.nanmean(right / theirs.sum(1)))
    assert scores["aacc"] == pytest.approx(right.sum() / theirs.sum())
    assert found.unknown == 0


def test_totals_of_the_set_are_not_means_over_images():
    found = MeanIoU(2)
    found.update(torch.zeros(1, 9).long(), torch.zeros(1, 9).long())
    found.update(torch.zeros(1, 1).long(), torch.ones(1, 1).long())
    assert found.result() == {"miou": 0.45, "macc": 0.5, "aacc": 0.9}


def test_a_class_that_is_neither_there_nor_said_counts_for_nothing():
    found = MeanIoU(4)
    found.update(torch.tensor([[0, 1, 2]]), torch.tensor([[0, 1, 1]]))
    iou, accuracy = found.per_class()
    assert iou.tolist()[:3] == [1.0, 0.5, 0.0]  # said but never there: 0
    assert math.isnan(iou[3])
    assert math.isnan(accuracy[2])
    assert found.result() == {"miou": 0.5, "macc": 0.75, "aacc": pytest.approx(2 / 3)}


def test_nothing_counted_is_no_number():
    assert all(math.isnan(value) for value in MeanIoU(3).result().values())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_labels_above_the_last_class_are_counted_apart(dtype):
    found = MeanIoU(3)
    here = found.update(torch.tensor([[0, 1, 2, 2, 2]]), torch.tensor([[0, 1, 3, 254, 255]], dtype=dtype))
    assert found.unknown == int(unknown(here)) == 2
    assert found.confusion.sum() == 2
    assert found.result()["aacc"] == 1.0
    assert pixel_accuracy(here) == 1.0


def test_labels_beyond_8_bits_are_counted_apart():
    found = MeanIoU(255)
    found.update(torch.zeros(1, 4).long(), torch.tensor([[-1, 256, 65535, 0]]))
    assert found.unknown == 3
    assert found.counts[BEYOND].sum() == 3


def test_counting_leaves_the_maps_alone():
    predicted, labels = torch.ones(2, 2).int(), torch.ones(2, 2).int()
    MeanIoU(3).update(predicted, labels)
    assert predicted.unique().tolist() == labels.unique().tolist() == [1]


@pytest.mark.parametrize(
    ("predicted", "labels", "text"),
    [
        ((2, 3), (3, 2), "Predicted (2, 3) and true (3, 2) maps differ in size."),
        (5, (2, 3), "Predicted classes are 0 to 4; got 5."),
        (-1, (2, 3), "Predicted classes are 0 to 4; got -1."),
    ],
)
def test_answers_that_cannot_be(predicted, labels, text):
    given = torch.zeros(predicted) if isinstance(predicted, tuple) else torch.full((2, 3), predicted)
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        MeanIoU(5).update(given.long(), torch.zeros(labels, dtype=torch.uint8))
