"""Weighted k-NN classification of frozen features; see `metrics.knn`.

No training. The training images, preprocessed as for evaluation, vote for the validation images.
"""

from typing import Any

import torch
from pydantic import Field
from torch import nn

from tetravit.metrics import knn
from tetravit.protocols.base import Loaders, Protocol, ProtocolConfig, Scores
from tetravit.protocols.parts.features import Features, collected, everywhere
from tetravit.world import World

SHOWN = 12  # images with nearest neighbours in a report
NEAREST = 6
MAP = 1000  # maximum number of points of the 2-d map


class KnnConfig(ProtocolConfig):
    """The `[evaluate]` section of k-NN."""

    ks: tuple[int, ...] = Field(default=(10, 20, 100, 200), description="Numbers of neighbours.")
    temperature: float = Field(default=0.07, gt=0, description="Divides the similarities.")
    images_per_class: int = Field(
        default=0, ge=0, description="Use only the first N training images of each class; 0: all."
    )

    def published_as(self, score: str) -> str | None:
        """Published scores use 20 neighbours, all training images and temperature 0.07."""
        usual = self.temperature == 0.07 and not self.images_per_class
        return score if usual else None


class Knn(Protocol):
    """knn_K: top-1 for each K, as a share; knn_K_top5: top-5.

    A K above the number of training images is skipped. findings: nearest neighbours of some validation images, and
    the first two principal components of the validation features.
    """

    name = "knn"
    kinds = ("classify",)
    primary_metrics = ("knn_20", "knn_10", "knn_5", "knn_1")
    Config = KnnConfig

    def score(self, model: nn.Module, loaders: Loaders) -> Scores:
        config, world = self.config, loaders.world
        train = _first(collected(model, loaders.train), config.images_per_class, world)
        test = everywhere(collected(model, loaders.validation), world)
        counts = world.gather(len(train))
        count = sum(counts)
        ks = [k for k in config.ks if k <= count]
        if not ks:
            raise ValueError(
                f"k-NN with {min(config.ks)} neighbours needs as many training images; there are {count}."
                " Set evaluate.ks."
            )
        if 0 in counts:  # fewer images than ranks: gather all on every rank
            train, world = everywhere(train, world), World()
        device = train.features.device
        votes = knn.vote(
            train.features,
            train.labels.to(device),
            test.features,
            ks=ks,
            temperature=config.temperature,
            num_classes=loaders.info.num_classes,
            positions=train.positions.to(device),
            world=world,
        )
        values = {}
        for k, table in votes.items():
            top1, top5 = knn.accuracy(table, test.labels.to(device), (1, min(5, k)))
            values[f"knn_{k}"] = top1
            values[f"knn_{k}_top5"] = top5
        findings = {"count": len(test), "neighbours": _neighbours(train, test, world), "map": _map(test)}
        return Scores(values, findings)


def _first(features: Features, per_class: int, world: World) -> Features:
    """This rank's images that are among the first of their class in the whole set."""
    if not per_class:
        return features
    parts = world.gather((features.labels, features.positions))
    labels, positions = (torch.cat([part[i] for part in parts]) for i in range(2))
    order = positions.argsort()
    order = order[labels[order].argsort(stable=True)]  # by class, then by index
    sorted_labels = labels[order]
    starts = torch.searchsorted(sorted_labels, sorted_labels)
    wanted = positions[order[torch.arange(len(order)) - starts < per_class]]
    kept = torch.isin(features.positions, wanted).nonzero()[:, 0]
    names = [features.names[i] for i in kept.tolist()] if features.names else []
    mine = kept.to(features.features.device)
    return Features(features.features[mine], features.labels[kept], features.positions[kept], names)


def _neighbours(train: Features, test: Features, world: World) -> list[dict[str, Any]]:
    """The nearest training images, over all ranks, of some validation images."""
    a, b = (torch.nn.functional.normalize(x.features, dim=1) for x in (train, test))
    rows: list[dict[str, Any]] = []
    for i in range(0, len(b), max(1, len(b) // SHOWN))[:SHOWN]:
        similarity, positions = (a @ b[i]).topk(min(NEAREST, len(a)))
        near = [
            {
                "name": train.names[j] if train.names else "",
                "index": int(train.positions[j]),
                "label": int(train.labels[j]),
                "similarity": round(s, 4),
            }
            for j, s in zip(positions.tolist(), similarity.tolist(), strict=True)
        ]
        name = test.names[i] if test.names else ""
        rows.append(
            {"name": name, "index": int(test.positions[i]), "label": int(test.labels[i]), "neighbours": near}
        )
    for row, *others in zip(*world.gather(rows), strict=True):
        near = sum((other["neighbours"] for other in others), row["neighbours"])
        row["neighbours"] = sorted(near, key=lambda n: (-n["similarity"], n["index"]))[:NEAREST]
    return rows


def _map(test: Features) -> list[list[float]]:
    """The first two principal components of the normalised features: x, y, label."""
    rows = torch.nn.functional.normalize(test.features.double().cpu(), dim=1)
    kept = torch.arange(0, len(rows), max(1, -(-len(rows) // MAP)))
    centred = rows - rows.mean(0)
    _, vectors = torch.linalg.eigh(centred.T @ centred)
    flat = centred[kept] @ vectors.flip(1)[:, :2]
    labels = test.labels[kept].tolist()
    return [[round(x, 4), round(y, 4), label] for (x, y), label in zip(flat.tolist(), labels, strict=True)]


PROTOCOLS = {"knn": Knn}
