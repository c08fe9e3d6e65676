"""Predictions at every anchor, shared by region proposals and RetinaNet.

Shapes: A anchors per cell, K classes, N = H * W * A anchors of a level (or of all levels, if stated).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tetravit.boxes.anchors import AnchorGrid, inside_image, inside_padding
from tetravit.boxes.matching import IGNORED, Matcher
from tetravit.structures import Target

PADDING = 32  # images are padded to multiples of this many pixels a side


class Dense(NamedTuple):
    """Predictions of a detection head at every anchor; one entry per level, fine to coarse."""

    levels: list[Tensor]  # (B, C, H, W): the pyramid
    logits: list[Tensor]  # (B, A * K, H, W)
    deltas: list[Tensor]  # (B, A * 4, H, W)


def per_anchor(level: Tensor, width: int) -> Tensor:
    """(B, A * width, H, W) -> (B, N, width), in anchor order."""
    return level.permute(0, 2, 3, 1).reshape(level.shape[0], -1, width)


def start_small(layer: nn.Conv2d | nn.Linear, std: float = 0.01) -> None:
    """Normal weights with a small standard deviation, zero bias: initialisation of prediction layers."""
    nn.init.normal_(layer.weight, std=std)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def match_anchors(
    grid: AnchorGrid,
    dense: Dense,
    targets: Sequence[Target],
    sizes: Tensor,
    matcher: Matcher,
    border: int | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Assign the anchors of all levels to the ground truth of each image.

    Anchors of cells in the padding beyond the next multiple of 32 pixels are IGNORED, not background; with a
    `border`, so are those that extend that many pixels beyond the image.

    Returns:
        The anchors (N, 4) and per image the matches (N,).
    """
    anchors = torch.cat(grid(dense.logits))
    matches = []
    for target, (height, width) in zip(targets, sizes.tolist(), strict=True):
        padded = (-(-height // PADDING) * PADDING, -(-width // PADDING) * PADDING)
        cells = torch.cat(inside_padding(dense.logits, grid.strides, *padded))
        usable = cells.repeat_interleave(grid.num_anchors)
        if border is not None:
            usable &= inside_image(anchors, height, width, border)
        match = torch.full((len(anchors),), IGNORED, device=anchors.device)
        match[usable] = matcher(target.boxes, anchors[usable])
        matches.append(match)
    return anchors, matches
