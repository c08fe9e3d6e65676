"""Counts of right answers add up, whatever the batches."""

import math

import pytest
import torch
from sklearn.metrics import confusion_matrix as their_confusion
from sklearn.metrics import top_k_accuracy_score

from tetravit.metrics.accuracy import Accuracy, confusion_matrix, per_class, top_k_hits

LOGITS = torch.randn(97, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.randint(0, 8, (97,), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", [1, 10, 97])
def test_totals_are_those_of_scikit_learn(size):
    accuracy = Accuracy(8, ks=(1, 3, 5))
    for x, y in zip(LOGITS.split(size), LABELS.split(size), strict=True):
        accuracy.update(x, y)
    result = accuracy.result()
    for k in (1, 3, 5):
        theirs = top_k_accuracy_score(LABELS, LOGITS, k=k, labels=range(8))
        assert result[f"top{k}"] == pytest.approx(theirs)
    theirs = their_confusion(LABELS, LOGITS.argmax(1), labels=range(8))
    assert accuracy.confusion.tolist() == theirs.tolist()
    assert accuracy.total == 97
    assert accuracy.confusion.diagonal().sum() == accuracy.hits[0]


def test_ranks_join_by_summing_the_counts():
    whole, *parts = (Accuracy(8) for _ in range(3))
    whole.update(LOGITS, LABELS)
    for rank, part in enumerate(parts):
        part.update(LOGITS[rank::2], LABELS[rank::2])
    for total, a, b in zip(whole.counts, parts[0].counts, parts[1].counts, strict=True):
        assert torch.equal(total, a.add_(b))
    assert parts[0].result() == whole.result()


def test_more_than_there_are_classes():
    assert top_k_hits(torch.eye(3), torch.tensor([0, 1, 0]), ks=(1, 5)).tolist() == [2, 3]


def test_a_row_with_nan_is_a_miss():
    logits = torch.tensor([[math.nan, 0.0], [math.nan, math.nan], [1.0, 0.0]])
    assert top_k_hits(logits, torch.tensor([0, 0, 0]), ks=(1, 2)).tolist() == [1, 1]


def test_before_the_first_image_there_is_no_accuracy():
    assert math.isnan(Accuracy(3).result()["top1"])


def test_shares_per_class():
    confusion = confusion_matrix(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 1]), 3)
    assert confusion.tolist() == [[1, 0, 0], [1, 2, 0], [0, 0, 0]]
    shares = per_class(confusion).tolist()
    assert shares[:2] == pytest.approx([1.0, 2 / 3])
    assert math.isnan(shares[2])
