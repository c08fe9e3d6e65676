"""Embeddings of whole sets, for protocols that evaluate features.

Shapes: N images, C width of the embedding.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tetravit.protocols.base import EMPTY, device_of
from tetravit.structures import Batch
from tetravit.world import World

Embed = Callable[[Tensor], Tensor]
FINE = 16  # stride of dense patch features in pixels


@dataclass(frozen=True)
class Features:
    """features: float32 (N, C). labels: int64 (N,). positions: in the set, int64 (N,). names: of the images."""

    features: Tensor
    labels: Tensor
    positions: Tensor
    names: list[str]

    def __len__(self) -> int:
        return len(self.features)

    def first(self, count: int) -> "Features":
        """The first `count` images."""
        return Features(
            self.features[:count], self.labels[:count], self.positions[:count], self.names[:count]
        )


def backbone_of(model: nn.Module) -> Any:
    """The backbone whose embeddings are evaluated.

    Raises:
        ValueError: for a model without image embeddings.
    """
    backbone = getattr(model, "backbone", model)
    if not hasattr(backbone, "embed_dim"):
        raise ValueError(
            f"This protocol scores embeddings of images, which {type(model).__name__} does not have;"
            " use a classifier or a self-supervised model."
        )
    return backbone


def fine_features(backbone: Any, images: Tensor) -> tuple[Tensor, int]:
    """Patch features (B, C, H, W) and their stride in pixels: of the last stage; for a pyramid of the stride-16
    stage."""
    strides = backbone.strides
    level = next((i for i in reversed(range(len(strides))) if strides[i] <= FINE), None)
    if strides[-1] <= FINE or level is None:
        return backbone.patch_features(images), strides[-1]
    return backbone.feature_maps(images)[level], strides[level]


def collected(model: nn.Module, batches: Iterable[Batch], embed: Embed | None = None) -> Features:
    """This rank's embeddings, in float32 regardless of autocast; on the model's device.

    embed: images (B, 3, Hi, Wi) -> features (B, C); None: the embedding of the backbone.

    Raises:
        ValueError: for images without labels.
    """
    device = device_of(model)
    embed = backbone_of(model) if embed is None else embed
    rows: list[Tensor] = []
    labels: list[Tensor] = []
    positions: list[int] = []
    names: list[str] = []
    for batch in batches:
        if not isinstance(batch.targets, Tensor) or batch.targets.ndim != 1:
            raise ValueError("Features are scored on images with one class each; this set has none.")
        with torch.autocast(device.type, enabled=False):
            rows.append(embed(batch.images.to(device).float()).float())
        labels.append(batch.targets.cpu())
        positions += batch.indices
        names += batch.names
    if not rows:
        empty = torch.zeros(0, backbone_of(model).embed_dim, device=device)
        return Features(empty, torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), [])
    known = torch.tensor(positions) if positions else torch.arange(sum(map(len, labels)))
    return Features(torch.cat(rows), torch.cat(labels), known, names)


def everywhere(features: Features, world: World) -> Features:
    """The features of all ranks, in set order, on every rank.

    Raises:
        ValueError: if there are none.
    """
    mine = (features.features.cpu(), features.labels, features.positions)
    parts = world.gather(mine) if world.size > 1 else [mine]
    parts = [part for part in parts if len(part[0])] or parts[:1]
    rows, labels, positions = (torch.cat([part[i] for part in parts]) for i in range(3))
    if not len(rows):
        raise ValueError(EMPTY)
    order = positions.argsort(stable=True)
    lists = world.gather(features.names) if world.size > 1 else [features.names]
    names = [name for part in lists for name in part]
    ordered = [names[i] for i in order.tolist()] if len(names) == len(order) else []
    device = features.features.device
    return Features(rows[order].to(device), labels[order], positions[order], ordered)
