"""Losses against their formulas, accuracy, scores, and what the task refuses."""

import pytest
import torch
from task_toys import START, data_section, described, scored
from torch import nn
from torch.nn import functional as F

from tetravit.protocols.accuracy import Accuracy
from tetravit.structures import Batch
from tetravit.tasks.classify import Classify, ClassifyConfig

K = 4


class Table(nn.Module):
    """Logits are looked up: image i is the number of its row."""

    num_classes = K

    def __init__(self, rows):
        super().__init__()
        self.rows = nn.Parameter(torch.tensor(rows))

    def forward(self, images):
        return self.rows[images[:, 0, 0, 0].long()]


ROWS = [[4.0, 1.0, 0.0, 0.0], [0.0, 3.0, 1.0, 0.0], [5.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 2.0]]
LABELS = torch.tensor([0, 1, 2, 3])


def batch(indices=(0, 1, 2, 3)):
    images = torch.tensor(indices, dtype=torch.float32)[:, None, None, None].expand(-1, 3, 2, 2)
    return Batch(images, LABELS[list(indices)], names=[f"n{i}" for i in indices], indices=list(indices))


def task(**config):
    return Classify(Table(ROWS), ClassifyConfig(**config), described(K))


def test_cross_entropy_and_its_smoothing():
    logits = torch.tensor(ROWS)
    assert task().step(batch(), START)["loss"].item() == pytest.approx(F.cross_entropy(logits, LABELS).item())
    soft = F.one_hot(LABELS, K) * 0.8 + 0.2 / K
    wanted = -(soft * logits.log_softmax(1)).sum(1).mean()
    smoothed = task(label_smoothing=0.2)
    assert smoothed.step(batch(), START)["loss"].item() == pytest.approx(wanted.item())
    assert smoothed.loss(logits, soft).item() == pytest.approx(wanted.item())


def test_binary_decisions():
    logits = torch.tensor(ROWS)
    soft = F.one_hot(LABELS, K) * 0.8 + 0.2 / K
    wanted = -(soft * F.logsigmoid(logits) + (1 - soft) * F.logsigmoid(-logits)).mean()
    made = task(loss="bce", label_smoothing=0.2)
    assert made.step(batch(), START)["loss"].item() == pytest.approx(wanted.item())
    assert made.loss(logits, soft).item() == pytest.approx(wanted.item())


def test_accuracy_of_a_step():
    assert task().step(batch(), START)["accuracy"] == 0.75


def test_mixed_batches_follow_the_generator():
    class Mean(nn.Module):
        num_classes = K

        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.arange(4.0))

        def forward(self, images):
            return images.mean((1, 2, 3))[:, None] * self.scale

    made = Classify(Mean(), ClassifyConfig(), described(K))
    made.prepare(data_section("mixup(0.8) | cutmix(1.0)"))
    images = Batch(torch.randn(4, 3, 8, 8), LABELS)
    losses = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        losses.append(made.step(images, START)["loss"].item())
    assert losses[0] == losses[1] != losses[2]


def test_score_counts_every_image_once():
    made = task().eval()
    with torch.no_grad():
        scores = scored(made, [batch((0, 1, 2)), batch((3,))])
    assert scores.values == {
        "top1": 0.75,
        "top5": 1.0,
        "loss": pytest.approx(F.cross_entropy(torch.tensor(ROWS), LABELS).item()),
    }
    assert scores.findings["confusion"] == {
        "matrix": [[1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]]
    }
    (mistake,) = scores.findings["mistakes"]
    sure = torch.tensor(ROWS[2]).softmax(0)[0].item()
    assert mistake == {
        "name": "n2",
        "index": 2,
        "label": 2,
        "predicted": 0,
        "confidence": pytest.approx(sure, abs=1e-6),
    }
    assert Accuracy().better(0.9, 0.8)
    assert not Accuracy().better(0.8, 0.8)
    assert Accuracy().primary(scores.values) == "top1"


def test_an_empty_set_is_an_error():
    with pytest.raises(ValueError) as error:
        scored(task(), [])
    assert str(error.value) == "The set to score on is empty."


def test_a_model_of_another_number_of_classes_is_refused():
    with pytest.raises(ValueError) as error:
        Classify(Table(ROWS), ClassifyConfig(), described(10))
    assert str(error.value) == "The model has 4 classes; the data has 10."


def test_many_classes_keep_the_largest_confusions():
    from tetravit.protocols.accuracy import _table

    confusion = torch.eye(100, dtype=torch.int64) * 5
    confusion[3, 7], confusion[9, 1] = 4, 2
    table = _table(confusion)
    assert table["pairs"] == [[3, 7, 4], [9, 1, 2]]
    assert table["recall"][3] == pytest.approx(5 / 9, abs=1e-4)
