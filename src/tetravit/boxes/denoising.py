"""Contrastive denoising: noised copies of the objects as extra queries in training (DINO, arXiv:2203.03605, 3.3).

A group contains every object twice: a positive query to be reconstructed, and a negative one with more noise to be
rejected. Queries of a group attend to their group and to the matching queries, not to other groups; matching queries
attend to no group.

Shapes: B images, M objects of an image, M* the most of an image, G groups, pad = 2 * M* * G, C width.
Source: IDEA-Research/DINO@faa8520 models/dino/dn_components.py.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tetravit.boxes.coding import corners, inverse_sigmoid
from tetravit.seeds import hashed_uniform

NUMBERS = 10  # random numbers per query: flip, label, four signs, four magnitudes
MANY = 100  # num_denoising from which it is divided by the number of objects


class Draws(NamedTuple):
    """Random numbers of the noise; n = 2 * G * (objects of the batch). None: drawn on demand."""

    flip: Tensor | None = None  # (n,) in 0..1: a label changes below label_noise / 2
    label: Tensor | None = None  # (number of flips,) integers: the new labels, in the order of the flips
    sign: Tensor | None = None  # (n, 4), 0 or 1: the direction in which a side moves
    part: Tensor | None = None  # (n, 4) in 0..1: how far, before the 1 that negatives add

    @classmethod
    def of_images(
        cls, keys: Tensor, labels: Sequence[Tensor], *, groups: int, num_classes: int, label_noise: float
    ) -> "Draws":
        """Random numbers of every image from its key, independent of the rest of the batch.

        Args:
            keys: (B,) int64 of `seeds.row_keys`.
            labels: per image (M,).
            groups: from `num_groups`.
            num_classes: random labels are below it.
            label_noise: twice the probability of a random label.
        """
        copies = 2 * groups
        parts = [
            hashed_uniform(key, torch.arange(copies * len(x) * NUMBERS, device=keys.device)).view(
                copies, len(x), NUMBERS
            )
            for key, x in zip(keys, labels, strict=True)
        ]
        u = torch.cat(parts, dim=1).flatten(0, 1)  # (n, NUMBERS)
        flip = u[:, 0]
        new = (u[flip < label_noise / 2, 1] * num_classes).long().clamp(max=num_classes - 1)
        return cls(flip, new, (u[:, 2:6] < 0.5).long(), u[:, 6:])


class DenoisingQueries(NamedTuple):
    """Denoising queries, placed before the matching queries.

    Unused slots of images with fewer objects have zero content and zero box logits, and are not masked.
    """

    content: Tensor  # (B, pad, C)
    boxes: Tensor  # (B, pad, 4), logits of cx cy w h
    mask: Tensor  # (pad + num_queries, pad + num_queries) bool; True: blocked, from row to column
    groups: int


def denoising_queries(
    labels: Sequence[Tensor],
    boxes: Sequence[Tensor],
    embedding: nn.Embedding | Tensor,
    draws: Draws | None = None,
    *,
    num_queries: int,
    num_denoising: int = 100,
    label_noise: float = 0.5,
    box_noise: float = 1.0,
    most: int | None = None,
) -> DenoisingQueries:
    """Build the denoising queries of a batch.

    Args:
        labels: per image (M,) int64.
        boxes: per image (M, 4), cx cy w h in 0..1.
        embedding: one row of C values per class, and one extra row; or its weight.
        draws: the random numbers; None: drawn here.
        num_queries: matching queries.
        num_denoising: positive queries per image, divided by the number of objects; below 50 twice as many groups,
            whatever the number of objects.
        label_noise: twice the probability of a random label.
        box_noise: maximum shift of a side, in half sides; negatives from once to twice as far.
        most: number of object slots per group; None: the maximum over the images of the batch.
    """
    weight = embedding.weight if isinstance(embedding, nn.Embedding) else embedding
    draws = draws or Draws()
    counts = [len(x) for x in labels]
    total, batch = sum(counts), len(counts)
    most = max(counts, default=0) if most is None else most
    groups = num_groups(most, num_denoising)
    pad = 2 * most * groups
    content = weight.new_zeros(batch, pad, weight.shape[1])
    slots = weight.new_zeros(batch, pad, 4, dtype=torch.float32)
    if total:
        copies = 2 * groups  # alternating positives and negatives
        label = _flipped(torch.cat(list(labels)).repeat(copies), draws, label_noise, len(weight) - 1)
        box = torch.cat(list(boxes)).float().repeat(copies, 1)
        negative = torch.arange(copies, device=box.device).remainder(2).repeat_interleave(total)[:, None]
        box = _moved(box, draws, box_noise, negative)
        image = torch.arange(batch).repeat_interleave(torch.tensor(counts))
        place = torch.cat([torch.arange(count) for count in counts])
        slot = (torch.arange(copies)[:, None] * most + place).flatten()
        image, slot = image.repeat(copies).to(box.device), slot.to(box.device)
        content = content.index_put((image, slot), weight[label])
        slots = slots.index_put((image, slot), inverse_sigmoid(box))
    return DenoisingQueries(content, slots, _mask(pad, groups, num_queries, slots.device), groups)


def num_groups(most: int, num_denoising: int) -> int:
    """Number of groups of a batch with at most `most` objects per image."""
    copies = 2 * num_denoising
    if not most:
        return 1
    return max(1, copies // (2 * most) if copies >= MANY else copies)


def positives(count: int, most: int, groups: int, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Pairs of denoising query and reconstructed object, for an image with `count` objects: (queries, objects)."""
    objects = torch.arange(count, device=device)
    queries = torch.arange(groups, device=device)[:, None] * (2 * most) + objects
    return queries.flatten(), objects.repeat(groups)


def _flipped(labels: Tensor, draws: Draws, noise: float, num_classes: int) -> Tensor:
    if noise <= 0:
        return labels
    flip = torch.rand(len(labels), device=labels.device) if draws.flip is None else draws.flip
    chosen = (flip.to(labels.device) < noise / 2).nonzero().flatten()
    new = draws.label
    if new is None:
        new = torch.randint(num_classes, (len(chosen),), device=labels.device)
    return labels.scatter(0, chosen, new.to(labels))


def _moved(boxes: Tensor, draws: Draws, noise: float, negative: Tensor) -> Tensor:
    """Boxes (n, 4), cx cy w h, with independently shifted sides, clipped to the image."""
    if noise <= 0:
        return boxes
    sign = torch.randint(2, boxes.shape, device=boxes.device) if draws.sign is None else draws.sign
    part = torch.rand(boxes.shape, device=boxes.device) if draws.part is None else draws.part
    step = (part.to(boxes) + negative) * (2.0 * sign.to(boxes) - 1.0)
    half = (boxes[:, 2:] / 2).repeat(1, 2)
    moved = (corners(boxes) + step * half * noise).clamp(0, 1)
    low, high = moved[:, :2], moved[:, 2:]
    return torch.cat(((low + high) / 2, high - low), dim=1)


def _mask(pad: int, groups: int, num_queries: int, device: torch.device) -> Tensor:
    """Attention mask (pad + num_queries, the same) bool, True: masked."""
    member = torch.full((pad + num_queries,), -1, device=device)  # -1: a matching query
    member[:pad] = torch.arange(groups, device=device).repeat_interleave(pad // groups)
    return (member[None, :] >= 0) & (member[None, :] != member[:, None])
