"""Video object segmentation as DAVIS 2017 measures it: label propagation, region and boundary scores.

The labels of the first frame move along with the features: each token takes the mean of the labels of the most
similar tokens near it in the first and in the last few frames.

Shapes: T frames, C channels, H W tokens, K objects with the background as 0, h w pixels.
Source: facebookresearch/dino@7c446df eval_video_segmentation.py; davisvideochallenge/davis2017-evaluation@ac7c43f.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

BINS = 4  # parts of a video between whose first and last the decay is measured
BOUNDARY = 0.008  # width of the matching zone as a share of the diagonal


def propagate(
    features: Tensor,
    first: Tensor,
    *,
    context: int = 7,
    radius: int = 12,
    topk: int = 5,
    temperature: float = 0.1,
) -> Tensor:
    """Soft labels of every frame from those of the first.

    Args:
        features: (T, C, H, W); they are compared by their cosine.
        first: soft labels (K, H, W) of frame 0.
        context: frames before the current one that count beside frame 0.
        radius: tokens to either side that are compared; 0: all.
        topk: most similar tokens of the whole context that count; equally similar ones all do.
        temperature: divides the similarities.

    Returns:
        (T, K, H, W), frame 0 as given; each token's labels sum to 1 where those of the first frame do.

    Raises:
        ValueError: for another grid of `first`, a number below its bound.
    """
    if features.ndim != 4 or first.ndim != 3 or features.shape[2:] != first.shape[1:]:
        raise ValueError(
            "propagate takes features (T, C, H, W) and labels (K, H, W) of one grid; got"
            f" {tuple(features.shape)} and {tuple(first.shape)}."
        )
    if context < 0 or radius < 0 or topk < 1 or not temperature > 0:
        raise ValueError(
            "propagate takes context and radius from 0, topk from 1 and a temperature above 0; got"
            f" {context}, {radius}, {topk} and {temperature:g}."
        )
    normed = F.normalize(features.float(), dim=1)
    soft = [first.float()]
    for t in range(1, len(features)):
        sources = [0, *range(max(1, t - context), t)]
        around, labels = normed[sources], torch.stack([soft[s] for s in sources])
        soft.append(_moved(normed[t], around, labels, radius, topk, temperature))
    return torch.stack(soft)


def _moved(
    target: Tensor, around: Tensor, labels: Tensor, radius: int, topk: int, temperature: float
) -> Tensor:
    """Labels (K, H, W) of a frame (C, H, W) from those (S, K, H, W) of its context (S, C, H, W).

    A row of target tokens is compared with the rows of all context frames near it: memory for W x S (2 r + 1) W
    similarities.
    """
    height, width = target.shape[1:]
    columns = torch.arange(width, device=target.device)
    far = (columns[:, None] - columns[None, :]).abs() > (radius or width)  # (W, W)
    rows = []
    for y in range(height):
        low, high = (max(0, y - radius), y + radius + 1) if radius else (0, height)
        near = around[:, :, low:high].transpose(0, 1).flatten(1)  # (C, S r W)
        weights = (target[:, y].T @ near / temperature).exp()
        weights = weights.unflatten(1, (-1, width)).masked_fill(far[:, None], 0.0).flatten(1)
        kth = weights.topk(min(topk, weights.shape[1]), dim=1).values[:, -1:]
        weights = torch.where(weights >= kth, weights, 0.0)
        weights = weights / weights.sum(dim=1, keepdim=True)
        rows.append(labels[:, :, low:high].transpose(0, 1).flatten(1) @ weights.T)  # (K, W)
    return torch.stack(rows, dim=1)


def first_labels(labels: Tensor, grid: tuple[int, int]) -> Tensor:
    """A label map (h, w) of integers -> one-hot (K, H, W) on the tokens, by the nearest pixel."""
    small = F.interpolate(labels[None, None].double(), size=grid, mode="nearest-exact")[0, 0].long()
    return F.one_hot(small, int(labels.max()) + 1).permute(2, 0, 1).float()


def label_map(soft: Tensor, patch: int, size: tuple[int, int]) -> Tensor:
    """Soft labels (K, H, W) -> a label map uint8 (h, w).

    They are enlarged by the patch size bilinearly, stretched to 0..1 object by object, and the largest is taken;
    objects whose maximum is 0 stay as they are. The result is resized by the nearest pixel.
    """
    big = F.interpolate(soft[None].float(), scale_factor=patch, mode="bilinear", align_corners=False)[0]
    flat = big.flatten(1)
    low, high = flat.min(1).values[:, None, None], flat.max(1).values[:, None, None]
    stretched = torch.where(high > 0, (big - low) / (high - low).clamp(min=torch.finfo(big.dtype).tiny), big)
    hard = stretched.argmax(dim=0).float()
    return F.interpolate(hard[None, None], size=size, mode="nearest-exact")[0, 0].to(torch.uint8)


def region(truth: Tensor | np.ndarray, predicted: Tensor | np.ndarray) -> np.ndarray:
    """J: intersection over union of masks (T, h, w), a number per frame (T,); 1 where both are empty."""
    a, b = (torch.as_tensor(x).bool().flatten(1) for x in (truth, predicted))
    union = (a | b).sum(1).double()
    return torch.where(union > 0, (a & b).sum(1).double() / union.clamp(min=1), 1.0).numpy()


def boundary(truth: Tensor | np.ndarray, predicted: Tensor | np.ndarray) -> np.ndarray:
    """F: harmonic mean of precision and recall of the boundaries of masks (T, h, w), a number per frame (T,).

    Boundary pixels match where one of the other mask lies within 0.008 of the diagonal, rounded up.
    """
    a, b = (torch.as_tensor(x).bool() for x in (truth, predicted))
    radius = math.ceil(BOUNDARY * math.hypot(*a.shape[1:]))
    true, predicted_edges = _edges(a), _edges(b)
    near_true, near_found = _dilated(true, radius), _dilated(predicted_edges, radius)
    scores = []
    for t, p, near_t, near_p in zip(true, predicted_edges, near_true, near_found, strict=True):
        true_count, found_count = int(t.sum()), int(p.sum())
        precision = int((p & near_t).sum()) / found_count if found_count else float(true_count > 0)
        recall = int((t & near_p).sum()) / true_count if true_count else float(found_count > 0)
        if not true_count and not found_count:
            precision = recall = 1.0
        elif not true_count or not found_count:
            precision, recall = (0.0, 1.0) if found_count else (1.0, 0.0)
        scores.append(2 * precision * recall / (precision + recall) if precision + recall else 0.0)
    return np.array(scores)


def _edges(masks: Tensor) -> Tensor:
    """Pixels that differ from the one to the right, below, or right below; (T, h, w) bool."""
    padded = F.pad(masks[:, None].float(), (0, 1, 0, 1), mode="replicate")[:, 0].bool()
    right, below, corner = padded[:, :-1, 1:], padded[:, 1:, :-1], padded[:, 1:, 1:]
    edges = (masks ^ right) | (masks ^ below) | (masks ^ corner)
    edges[:, -1] = masks[:, -1] ^ right[:, -1]
    edges[:, :, -1] = masks[:, :, -1] ^ below[:, :, -1]
    edges[:, -1, -1] = False
    return edges


def _dilated(masks: Tensor, radius: int) -> Tensor:
    """Masks (T, h, w) grown by a disc: every pixel within `radius` of one that is set."""
    maps = masks[:, None].float()
    grown = maps
    for dy in range(-radius, radius + 1):
        half = math.isqrt(radius * radius - dy * dy)
        wide = F.max_pool2d(maps, (1, 2 * half + 1), stride=1, padding=(0, half))
        moved = F.pad(wide, (0, 0, max(dy, 0), max(-dy, 0)))
        moved = moved[:, :, : maps.shape[2]] if dy > 0 else moved[:, :, max(-dy, 0) :]
        grown = torch.maximum(grown, moved)
    return grown[:, 0].bool()


@dataclass(frozen=True)
class Statistics:
    """Of a score over the frames of a video: mean, share above 0.5, first quarter less last quarter."""

    mean: float
    recall: float
    decay: float

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter((self.mean, self.recall, self.decay))


def statistics(x: np.ndarray) -> Statistics:
    """Mean, recall and decay of scores (T,), frames that are nan left out."""
    values = np.asarray(x, dtype=np.float64)
    ends = np.floor(np.linspace(1, len(values), BINS + 1) + 0.5 + 1e-10).astype(int) - 1
    parts = [values[ends[i] : ends[i + 1] + 1] for i in range(BINS)]
    decay = float(np.nanmean(parts[0]) - np.nanmean(parts[-1]))
    return Statistics(float(np.nanmean(values)), float(np.nanmean(values > 0.5)), decay)
