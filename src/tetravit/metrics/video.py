"""Video object segmentation as DAVIS 2017 measures it: label propagation, region and boundary scores.

Labels of the first frame are propagated by feature similarity: each token gets the weighted mean of the labels of its
most similar nearby tokens in the first and the last few frames.

Shapes: T frames, C channels, H W tokens, K objects including background 0, h w pixels.
Source: facebookresearch/dino@7c446df eval_video_segmentation.py; davisvideochallenge/davis2017-evaluation@ac7c43f.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

BINS = 4  # quarters of a video: the decay is the first minus the last
BOUNDARY = 0.008  # boundary tolerance as a share of the diagonal


def propagate(
    features: Tensor,
    first: Tensor,
    *,
    context: int = 7,
    radius: int = 12,
    topk: int = 5,
    temperature: float = 0.1,
) -> Tensor:
    """Propagate soft labels from the first frame to all frames.

    Args:
        features: (T, C, H, W), compared by cosine similarity.
        first: soft labels (K, H, W) of frame 0.
        context: number of preceding frames used besides frame 0.
        radius: size of the neighbourhood in tokens, to each side; 0: unlimited.
        topk: number of most similar tokens over the whole context; ties are included.
        temperature: divides the similarities.

    Returns:
        (T, K, H, W), frame 0 unchanged; labels of a token sum to 1 if those of the first frame do.

    Raises:
        ValueError: if `first` has another grid, or a parameter is out of range.
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
    """Propagate labels (S, K, H, W) of the context (S, C, H, W) to a frame (C, H, W).

    Each row of target tokens is compared with nearby rows of all context frames: memory for W x S (2 r + 1) W
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
    """An integer label map (h, w) -> one-hot (K, H, W) on the token grid, nearest neighbour."""
    small = F.interpolate(labels[None, None].double(), size=grid, mode="nearest-exact")[0, 0].long()
    return F.one_hot(small, int(labels.max()) + 1).permute(2, 0, 1).float()


def label_map(soft: Tensor, patch: int, size: tuple[int, int]) -> Tensor:
    """Soft labels (K, H, W) -> a label map uint8 (h, w).

    Labels are upsampled bilinearly by the patch size and rescaled to 0..1 per object (objects with maximum 0 are
    unchanged), then the argmax is taken and resized by nearest neighbour.
    """
    big = F.interpolate(soft[None].float(), scale_factor=patch, mode="bilinear", align_corners=False)[0]
    flat = big.flatten(1)
    low, high = flat.min(1).values[:, None, None], flat.max(1).values[:, None, None]
    stretched = torch.where(high > 0, (big - low) / (high - low).clamp(min=torch.finfo(big.dtype).tiny), big)
    hard = stretched.argmax(dim=0).float()
    return F.interpolate(hard[None, None], size=size, mode="nearest-exact")[0, 0].to(torch.uint8)


def region(truth: Tensor | np.ndarray, predicted: Tensor | np.ndarray) -> np.ndarray:
    """J: IoU of masks (T, h, w), per frame (T,); 1 if both are empty."""
    a, b = (torch.as_tensor(x).bool().flatten(1) for x in (truth, predicted))
    union = (a | b).sum(1).double()
    return torch.where(union > 0, (a & b).sum(1).double() / union.clamp(min=1), 1.0).numpy()


def boundary(truth: Tensor | np.ndarray, predicted: Tensor | np.ndarray) -> np.ndarray:
    """F: F-measure of the boundaries of masks (T, h, w), per frame (T,).

    A boundary pixel matches if the other boundary is within 0.008 of the diagonal, rounded up.
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
    """Boundary pixels: different from the right, lower, or lower right neighbour; (T, h, w) bool."""
    padded = F.pad(masks[:, None].float(), (0, 1, 0, 1), mode="replicate")[:, 0].bool()
    right, below, corner = padded[:, :-1, 1:], padded[:, 1:, :-1], padded[:, 1:, 1:]
    edges = (masks ^ right) | (masks ^ below) | (masks ^ corner)
    edges[:, -1] = masks[:, -1] ^ right[:, -1]
    edges[:, :, -1] = masks[:, :, -1] ^ below[:, :, -1]
    edges[:, -1, -1] = False
    return edges


def _dilated(masks: Tensor, radius: int) -> Tensor:
    """Dilation of masks (T, h, w) by a disc of `radius` pixels."""
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
    """Mean, recall (share above 0.5) and decay (first quarter minus last) of a per-frame score."""

    mean: float
    recall: float
    decay: float

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter((self.mean, self.recall, self.decay))


def statistics(x: np.ndarray) -> Statistics:
    """Mean, recall and decay of scores (T,), ignoring NaN frames."""
    values = np.asarray(x, dtype=np.float64)
    ends = np.floor(np.linspace(1, len(values), BINS + 1) + 0.5 + 1e-10).astype(int) - 1
    parts = [values[ends[i] : ends[i + 1] + 1] for i in range(BINS)]
    decay = float(np.nanmean(parts[0]) - np.nanmean(parts[-1]))
    return Statistics(float(np.nanmean(values)), float(np.nanmean(values > 0.5)), decay)
