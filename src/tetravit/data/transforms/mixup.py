"""Mixup (Zhang et al. 2017, arXiv:1710.09412) and CutMix (Yun et al. 2019, arXiv:1905.04899) of whole batches.

The partner of image i is image i + B / 2, modulo B; one sample of the mixing ratio serves the batch, as in timm's
batch mode, which trained the models of all four papers. With images interleaved over ranks, partners are on the same
rank, and the pairs are the same for any number of ranks. Runs on the device of the batch.

Shapes: B images, K classes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tetravit.data.calls import parse_calls
from tetravit.data.transforms.base import check_number

Mix = Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class MixUp:
    """Blend images and labels; the weight of the first is sampled from Beta(alpha, alpha)."""

    alpha: float

    def __post_init__(self) -> None:
        check_number("mixup", "alpha", self.alpha, 1e-3)

    def __call__(self, images: Tensor, lam: float, rng: np.random.Generator) -> tuple[Tensor, float]:
        return images * lam + partners(images) * (1 - lam), lam


@dataclass(frozen=True)
class CutMix:
    """Paste a box from the partner, and weight the labels by the pasted area.

    The area of the first image is sampled from Beta(alpha, alpha), the centre of the box uniformly. Area that the
    border cuts off the box counts for the first image.
    """

    alpha: float

    def __post_init__(self) -> None:
        check_number("cutmix", "alpha", self.alpha, 1e-3)

    def __call__(self, images: Tensor, lam: float, rng: np.random.Generator) -> tuple[Tensor, float]:
        height, width = images.shape[-2:]
        side = float(np.sqrt(1 - lam))
        (top, bottom), (left, right) = (_span(n, int(n * side), rng) for n in (height, width))
        mixed = images.clone()
        mixed[..., top:bottom, left:right] = partners(images)[..., top:bottom, left:right]
        return mixed, 1 - (bottom - top) * (right - left) / (height * width)


def _span(length: int, part: int, rng: np.random.Generator) -> tuple[int, int]:
    """A random interval, clipped at the ends of the line."""
    centre = int(rng.integers(length))
    return max(0, centre - part // 2), min(length, centre + (part + 1) // 2)


def partners(values: Tensor) -> Tensor:
    """The partners of a batch (B, ...)."""
    return values.roll(len(values) // 2, 0)


MIXES = {"mixup": MixUp, "cutmix": CutMix}


def parse_mix(text: str, num_classes: int, label_smoothing: float = 0.0) -> Mix:
    """Parse "mixup(0.8) | cutmix(1.0)".

    Args:
        text: one or both, joined by |; with both, each batch uses one, chosen uniformly. Empty: labels only.
        num_classes: K.
        label_smoothing: share of every label distributed over all classes, in [0, 1).

    Returns:
        A function of images (B, C, Hi, Wi), labels int64 (B,) and a CPU generator, its only source of randomness; it
        returns new images and soft targets float32 (B, K). It raises ValueError for an odd B.

    Raises:
        ValueError: for an unknown name, an alpha below 0.001, or a text that cannot be parsed.
    """
    parts = [call.build(MIXES, "mix") for call in parse_calls(text, "A mix")]
    check_number("mix", "label_smoothing", label_smoothing, 0.0, 1.0)

    def mix(images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        targets = soft_targets(labels, num_classes, label_smoothing)
        if not parts:
            return images, targets
        if len(images) % 2:
            raise ValueError(f"mix pairs images, so a batch holds an even number; got {len(images)}.")
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        part = parts[int(rng.integers(len(parts)))]
        images, lam = part(images, float(rng.beta(part.alpha, part.alpha)), rng)
        return images, targets * lam + partners(targets) * (1 - lam)

    return mix


def soft_targets(labels: Tensor, num_classes: int, label_smoothing: float) -> Tensor:
    """Labels int64 (B,) -> float32 (B, K): smoothing / K everywhere, 1 - smoothing more at the label."""
    off = label_smoothing / num_classes
    targets = torch.full((len(labels), num_classes), off, device=labels.device)
    return targets.scatter_(1, labels[:, None], 1 - label_smoothing + off)
