"""Weighted k-nearest-neighbour classification of features (Wu et al. 2018, arXiv:1805.01978; DINO's evaluation).

Each of the k most similar training images votes for its class with weight exp(similarity / temperature), where
similarity is the cosine. Both sets are processed in chunks, so memory does not grow with the product of their sizes.
Ranks may hold parts of the training set: each computes its local top k, which are then merged.

Shapes: N training images, M test images, C width, K classes.
Source: facebookresearch/dino@7c446df eval_knn.py.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from tetravit.world import World

TEST_CHUNK = 1024  # test images per chunk
TRAIN_CHUNK = 32768  # training images per chunk: 128 MiB of float32 similarities


def vote(
    train: Tensor,
    labels: Tensor,
    test: Tensor,
    *,
    ks: Sequence[int],
    temperature: float = 0.07,
    num_classes: int | None = None,
    positions: Tensor | None = None,
    world: World | None = None,
    test_chunk: int = TEST_CHUNK,
    train_chunk: int = TRAIN_CHUNK,
) -> dict[int, Tensor]:
    """Votes for every class, for several k in one pass.

    Args:
        train: features (N, C), of any norm and floating dtype; with `world`, this rank's part.
        labels: their classes, int64 (N,).
        test: features (M, C); the same on all ranks.
        ks: numbers of neighbours; at most the number of training images are used.
        temperature: divides the similarities.
        num_classes: K; None: the largest label plus 1.
        positions: index of each training image in the whole set, int64 (N,); ties go to the lower index. None: 0 to N
            - 1.
        world: ranks with the other parts.
        test_chunk, train_chunk: images per chunk; they affect memory only.

    Returns:
        For each k the weighted votes, float32 (M, K).

    Raises:
        ValueError: for empty features or wrong shapes, a k below 1, a label outside 0..K - 1, or a non-positive
            temperature.
    """
    _check(train, labels, test, ks, temperature)
    positions = torch.arange(len(train), device=train.device) if positions is None else positions
    num_classes = _classes(labels, num_classes, world)
    largest = max(ks)
    votes = {k: [] for k in ks}  # type: dict[int, list[Tensor]]
    for part in test.split(test_chunk):
        best = _nearest(train, labels, positions, part, largest, train_chunk)
        if world is not None and world.size > 1:
            best = _merged(best, world, largest)
        similarity, _, classes = best
        weights = (similarity / temperature).exp()
        for k in ks:
            summed = weights.new_zeros(len(part), num_classes)
            votes[k].append(summed.scatter_add_(1, classes[:, :k], weights[:, :k]))
    return {k: torch.cat(parts) for k, parts in votes.items()}


def accuracy(votes: Tensor, labels: Tensor, tops: Sequence[int] = (1,)) -> list[float]:
    """Top-k accuracy for each of `tops`, from votes (M, K) and labels (M,).

    Ties are ordered by class index.
    """
    order = votes.sort(dim=1, descending=True, stable=True).indices[:, : max(tops)]
    hits = order == labels[:, None]
    return [hits[:, :top].any(dim=1).double().mean().item() for top in tops]


def _check(train: Tensor, labels: Tensor, test: Tensor, ks: Sequence[int], temperature: float) -> None:
    if train.ndim != 2 or test.ndim != 2 or train.shape[1] != test.shape[1] or len(labels) != len(train):
        raise ValueError(
            "k-NN takes features (N, C), labels (N,) and features (M, C); got"
            f" {tuple(train.shape)}, {tuple(labels.shape)} and {tuple(test.shape)}."
        )
    if not len(train) or not len(test):
        raise ValueError(
            f"k-NN needs an image on either side; got {len(train)} to train on and {len(test)} to test."
        )
    if not ks or min(ks) < 1:
        raise ValueError(f"k-NN takes numbers of neighbours from 1 up; got {tuple(ks)}.")
    if not temperature > 0:
        raise ValueError(f"The temperature of k-NN is above 0; got {temperature:g}.")


def _classes(labels: Tensor, num_classes: int | None, world: World | None) -> int:
    low, high = int(labels.min()), int(labels.max())
    if num_classes is None:
        several = world is not None and world.size > 1
        return max(world.gather(high) if several and world is not None else [high]) + 1
    if low < 0 or high >= num_classes:
        raise ValueError(f"Labels of {num_classes} classes are 0 to {num_classes - 1}; got {low} to {high}.")
    return num_classes


Neighbours = tuple[Tensor, Tensor, Tensor]  # similarities, indices, classes; each (m, k), best first


def _nearest(
    train: Tensor, labels: Tensor, positions: Tensor, test: Tensor, k: int, chunk: int
) -> Neighbours:
    """The k nearest training images of each test image."""
    test = F.normalize(test.float(), dim=1)
    best: Neighbours | None = None
    for start in range(0, len(train), chunk):
        part = slice(start, start + chunk)
        similarity = test @ F.normalize(train[part].float(), dim=1).T  # (m, n)
        columns = _top(similarity, positions[part], min(k, similarity.shape[1]))
        nearest = similarity.gather(1, columns), positions[part][columns], labels[part][columns]
        best = nearest if best is None else _best(best, nearest, k)
    assert best is not None
    return _best(best, None, k)


def _top(similarity: Tensor, positions: Tensor, k: int) -> Tensor:
    """Columns of the k largest values of each row (m, n); ties go to the lowest index."""
    values, columns = similarity.topk(min(k + 1, similarity.shape[1]), dim=1)
    split = values[:, k - 1] == values[:, -1]  # rows with a tie at the k-th value
    cut, columns = columns.shape[1] > k, columns[:, :k].clone()
    if cut and bool(split.any()):
        rows = similarity[split]
        order = positions.argsort()
        sorted_rows = rows[:, order].sort(dim=1, descending=True, stable=True).indices[:, :k]
        columns[split] = order[sorted_rows]
    return columns


def _best(first: Neighbours, second: Neighbours | None, k: int) -> Neighbours:
    """The merged top k, by similarity, then by index."""
    similarity, positions, classes = (
        (torch.cat((a, b), dim=1) for a, b in zip(first, second, strict=True)) if second else first
    )
    order = positions.argsort(dim=1)
    order = order.gather(
        1, similarity.gather(1, order).sort(dim=1, descending=True, stable=True).indices[:, :k]
    )
    return similarity.gather(1, order), positions.gather(1, order), classes.gather(1, order)


def _merged(best: Neighbours, world: World, k: int) -> Neighbours:
    """The top k over all ranks; ranks may have fewer than k images."""
    parts = world.gather(tuple(t.cpu() for t in best))
    device = best[0].device
    similarity, positions, classes = (
        torch.cat([part[i] for part in parts], dim=1).to(device) for i in range(3)
    )
    return _best((similarity, positions, classes), None, k)
