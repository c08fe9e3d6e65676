"""k-NN and the linear probe as protocols: of features, not of logits, whatever the number of ranks."""

import math

import pytest
import torch
from torch import nn

from tetravit.data.datasets.base import DatasetInfo
from tetravit.protocols import PROTOCOLS, Loaders
from tetravit.protocols.linear import LinearConfig, _Classifiers, _held_out
from tetravit.protocols.parts.features import Features, everywhere
from tetravit.structures import Batch

INFO = DatasetInfo("classify", 3, ("a", "b", "c"))


class Pass(nn.Module):
    """An image (1, 1, C) is its embedding; logits would be useless."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Flatten()
        self.backbone.embed_dim = 4
        self.backbone.patch_features = lambda x: x.flatten(1)[:, :, None, None]

    def forward(self, images):
        raise AssertionError("logits are not what is judged")


def batches(count, seed, size=8):
    g = torch.Generator().manual_seed(seed)
    centres = torch.eye(4)[:3]
    labels = torch.arange(count) % 3
    rows = centres[labels] + 0.05 * torch.randn(count, 4, generator=g)
    parts = torch.arange(count).split(size)
    names = [f"{seed}/{i}" for i in range(count)]
    return [
        Batch(rows[p][:, None, None], labels[p], names=[names[i] for i in p], indices=p.tolist())
        for p in parts
    ]


class Drawn:
    """Batches of a training set in order, epoch after epoch, each epoch with other noise."""

    def __init__(self, count, size):
        self.dataset, self.batch_size, self.steps_per_epoch = range(count), size, count // size
        self.seen = []

    def batches(self, start=0):
        for epoch in range(1000):
            for batch in batches(len(self.dataset), epoch, self.batch_size)[: self.steps_per_epoch]:
                self.seen += batch.indices
                yield [batch]

    def close(self):
        self.closed = True


def loaders(train=60, val=15):
    return Loaders(
        batches(val, 1),
        INFO,
        make_train=lambda: batches(train, 0),
        make_augmented=lambda text, size, seed: Drawn(train, size),
    )


def scored(name, loaders, **options):
    row = PROTOCOLS[name]
    protocol = row(row.Config(protocol=name, **options))
    with torch.inference_mode():
        return protocol.score(Pass().eval(), loaders)


def test_knn():
    scores = scored("knn", loaders(), ks=(1, 5, 200))
    assert scores.values == {"knn_1": 1.0, "knn_1_top5": 1.0, "knn_5": 1.0, "knn_5_top5": 1.0}
    assert scores.findings["neighbours"][0]["neighbours"][0]["label"] == 0
    assert len(scores.findings["map"]) == 15


def test_knn_with_some_images_of_each_class():
    assert scored("knn", loaders(), ks=(3,), images_per_class=1).values["knn_3"] == 1.0
    with pytest.raises(ValueError) as error:
        scored("knn", loaders(), ks=(4,), images_per_class=1)
    assert str(error.value) == (
        "k-NN with 4 neighbours needs as many training images; there are 3. Set evaluate.ks."
    )


def test_linear():
    scores = scored("linear", loaders(), epochs=20, rates=(1e-5, 0.1), batch_size=16)
    assert scores.values == {"linear": 1.0, "linear_top5": 1.0, "linear_best": 1.0}
    assert scores.findings["probe"] == "cached"
    assert scores.findings["chosen"]["held_out"] == 1.0
    assert len(scores.findings["classifiers"]) == 4


@pytest.mark.parametrize("with_patches", [True, False])
def test_linear_on_augmented_images(with_patches):
    options = {"epochs": 20, "rates": (1e-5, 0.1), "batch_size": 16, "with_patches": with_patches}
    scores = scored("linear", loaders(), features="augmented", **options)
    assert scores.values == {"linear": 1.0, "linear_top5": 1.0, "linear_best": 1.0}
    assert scores.findings["probe"] == "augmented"
    assert len(scores.findings["classifiers"]) == 2 + 2 * with_patches
    with pytest.raises(ValueError) as error:
        scored("linear", Loaders(batches(9, 1), INFO), features="augmented")
    assert str(error.value) == "This protocol trains on augmented images, and there is no training set."


def test_classifiers_are_those_of_sgd():
    config = LinearConfig(rates=(0.5, 2.0), epochs=4, batch_size=8, with_patches=False)
    heads = _Classifiers(4, 3, config, 8, False, torch.device("cpu"))
    weight, bias = (p.clone() for p in heads.tensors["embedding"])
    for h, rate in enumerate(config.rates):
        layer = nn.Linear(4, 3)
        layer.load_state_dict({"weight": weight[h], "bias": bias[h]})
        sgd = torch.optim.SGD(layer.parameters(), lr=1.0, momentum=0.9)
        again = _Classifiers(4, 3, config, 8, False, torch.device("cpu"))
        for epoch in range(4):
            for batch in batches(16, 0):
                x = batch.images.flatten(1)
                sgd.param_groups[0]["lr"] = rate * 8 / 256 * 0.5 * (1 + math.cos(math.pi * epoch / 4))
                sgd.zero_grad()
                nn.functional.cross_entropy(layer(x), batch.targets).backward()
                sgd.step()
                again.step(x, batch.targets, epoch)
        torch.testing.assert_close(again.tensors["embedding"][0][h], layer.weight.data, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(again.tensors["embedding"][1][h], layer.bias.data, atol=1e-6, rtol=1e-5)


def test_held_out_images_are_never_trained_on(monkeypatch):
    trained = []
    usual = _Classifiers.step

    def step(self, features, labels, epoch, world=None):
        trained.append(features)
        usual(self, features, labels, epoch, world)

    monkeypatch.setattr(_Classifiers, "step", step)
    scored("linear", loaders(), features="augmented", epochs=1, batch_size=60)
    held = _held_out(60, 0)
    assert held.sum() == 6
    torch.testing.assert_close(trained[0][:, :4], batches(60, 0, 60)[0].images.flatten(1)[~held])


def test_too_few_images_for_a_probe():
    with pytest.raises(ValueError) as error:
        scored("linear", loaders(train=12))
    assert str(error.value) == "A linear probe needs 20 training images; there are 12."


def test_a_set_without_labels():
    empty = [Batch(torch.zeros(2, 4, 1, 1), None, indices=[0, 1])]
    with pytest.raises(ValueError) as error:
        scored("knn", Loaders(empty, INFO, make_train=lambda: empty))
    assert str(error.value) == "Features are scored on images with one class each; this set has none."


def test_features_of_two_ranks_come_in_the_order_of_the_set():
    class Two:
        size = 2

        def gather(self, value):
            other = (torch.zeros(2, 1), torch.tensor([7, 8]), torch.tensor([1, 3]))
            return [value, ["b", "d"] if isinstance(value, list) else other]

    mine = Features(torch.ones(2, 1), torch.tensor([5, 6]), torch.tensor([0, 2]), ["a", "c"])
    whole = everywhere(mine, Two())
    assert whole.labels.tolist() == [5, 7, 6, 8]
    assert whole.names == ["a", "b", "c", "d"]
