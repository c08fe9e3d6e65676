"""Losses against their formulas, accuracy, scores, and what the task refuses."""

import numpy as np
import pytest
import torch
from task_toys import START, data_section, described, scored
from torch import nn
from torch.nn import functional as F

from tetravit.protocols.accuracy import Accuracy
from tetravit.protocols.parts.multi_label import class_figures
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
        "balanced_accuracy": 0.75,
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


def test_every_class_has_its_recall_and_precision():
    with torch.no_grad():
        rows = scored(task(), [batch()]).findings["classes"]
    assert rows == [
        {"images": 1, "recall": 1.0, "precision": 0.5},
        {"images": 1, "recall": 1.0, "precision": 1.0},
        {"images": 1, "recall": 0.0, "precision": None},
        {"images": 1, "recall": 1.0, "precision": 1.0},
    ]
    chosen = Accuracy(Accuracy.Config(select_by="balanced_accuracy"))
    assert chosen.primary({"top1": 0.5, "balanced_accuracy": 0.4}) == "balanced_accuracy"


def test_weights_of_classes():
    logits, w = torch.tensor(ROWS), (1.0, 2.0, 0.5, 0.0)
    made = task(class_weights=w)
    wanted = F.cross_entropy(logits, LABELS, weight=torch.tensor(w))
    assert made.step(batch(), START)["loss"].item() == pytest.approx(wanted.item())
    info = described(K, counts=np.array([1, 1, 2, 4]))
    balanced = Classify(Table(ROWS), ClassifyConfig(class_weights="balanced"), info)
    assert balanced.class_weights.tolist() == [2.0, 2.0, 1.0, 0.5]
    assert "class_weights" not in balanced.state_dict()
    with pytest.raises(ValueError) as error:
        task(class_weights=(1.0, 2.0))
    assert str(error.value) == "task.class_weights takes 4 numbers from 0 on, one per class; got [1.0, 2.0]."


SEVERAL = torch.tensor([[1.0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


def test_images_with_several_classes():
    info = described(K, multi_label=True)
    made = Classify(Table(ROWS), ClassifyConfig(loss="bce"), info)
    data = Batch(batch().images, SEVERAL)
    wanted = F.binary_cross_entropy_with_logits(torch.tensor(ROWS), SEVERAL)
    values = made.step(data, START)
    assert values["loss"].item() == pytest.approx(wanted.item())
    right = ((torch.tensor(ROWS) > 0) == (SEVERAL > 0)).float().mean()
    assert values["accuracy"].item() == pytest.approx(right.item())
    with pytest.raises(ValueError, match=r"^Images with several classes train with task\.loss=bce"):
        Classify(Table(ROWS), ClassifyConfig(), info)
    with pytest.raises(ValueError, match=r"^Images with several classes are not mixed; got data\.mix="):
        made.prepare(data_section("mixup(0.8)"))


def test_average_precision_is_that_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    draw = torch.Generator().manual_seed(0)
    probabilities = torch.rand(60, generator=draw, dtype=torch.float64).round(decimals=1)  # many equal ones
    labels = torch.rand(60, generator=draw) < probabilities
    row = class_figures(probabilities, labels)
    assert row["ap"] == pytest.approx(metrics.average_precision_score(labels.numpy(), probabilities.numpy()))
    predicted = (probabilities >= row["threshold"]).numpy()
    assert row["f1"] == pytest.approx(metrics.f1_score(labels.numpy(), predicted))
    assert class_figures(probabilities, torch.zeros(60, dtype=torch.bool))["ap"] is None


def test_images_with_several_classes_are_scored_by_map():
    info = described(K, multi_label=True)
    made = Classify(Table(ROWS), ClassifyConfig(loss="bce"), info)
    with torch.no_grad():
        scores = scored(made, [Batch(batch().images, SEVERAL)])
    assert scores.values["map"] == pytest.approx((0.5 + 1.0 + 0.5 * 0.5 + 0.5 * 2 / 4 + 1.0) / 4, abs=0.15)
    assert Accuracy().primary(scores.values) == "map"
    assert [row["images"] for row in scores.findings["classes"]] == [1, 1, 2, 1]
