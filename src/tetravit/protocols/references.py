"""Published scores for the weights in the catalogue."""

from dataclasses import dataclass
from typing import Literal

from tetravit.protocols.base import ProtocolConfig
from tetravit.weights import Checkpoint

# Data sets with scores in the catalogue: size of the whole set, and the catalogue's name of each score.
FIGURES: dict[str, tuple[int, dict[str, str]]] = {
    "imagenet": (50_000, {"top1": "top1", "top5": "top5", "knn_20": "knn", "linear": "linear"}),
    "imagenet_real": (46_837, {"top1": "real"}),
    "imagenet_v2": (10_000, {"top1": "v2"}),
    "imagenet_a": (7_500, {"top1": "a"}),
    "imagenet_r": (30_000, {"top1": "r"}),
    "imagenet_sketch": (50_889, {"top1": "sketch"}),
    "ade20k": (2_000, {"miou": "miou"}),
    "coco": (5_000, {"box_ap": "box_ap", "mask_ap": "mask_ap"}),
}


@dataclass(frozen=True)
class Reference:
    """A published score of the same weights on the same data.

    score: its name in the protocol. value: a share in 0..1. kind: published by the authors of the weights, or
    measured by others. by: the source, and the preprocessing if different. images: size of the whole set, to which
    the score refers.
    """

    score: str
    value: float
    kind: Literal["published", "measured"]
    by: str
    images: int


def references(row: Checkpoint, data: str, config: ProtocolConfig | None = None) -> tuple[Reference, ...]:
    """The scores in a catalogue row on a data set by name, measured under the settings of `config`."""
    images, names = FIGURES.get(data, (0, {}))
    figures = []
    for score, usual in names.items():
        name = usual if config is None else config.published_as(usual)
        if name is None:
            continue
        if name in row.published:
            figures.append(Reference(score, row.published[name] / 100, "published", row.published_in, images))
        if name in row.measured:
            figures.append(Reference(score, row.measured[name] / 100, "measured", row.measured_by, images))
    return tuple(figures)
