"""Encode boxes as offsets from reference boxes, and decode them.

Source: R-CNN (arXiv:1311.2524, app. C) with the clamp of mmdet 2.28.2 DeltaXYWHBBoxCoder.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

LARGEST_STEP = math.log(1000 / 16)  # limits the scale factor to 62.5, so that exp stays finite


@dataclass(frozen=True)
class BoxCoder:
    """Offsets (dx, dy, dw, dh): shift of the centre in units of the reference sides, and log ratio of the sides.

    stds: divisors of the offsets, so that targets have about unit variance.
    """

    stds: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)

    def encode(self, boxes: Tensor, targets: Tensor) -> Tensor:
        """Reference boxes (..., 4) and target boxes -> offsets (..., 4)."""
        px, py, pw, ph = _centre(boxes)
        gx, gy, gw, gh = _centre(targets)
        deltas = torch.stack(((gx - px) / pw, (gy - py) / ph, (gw / pw).log(), (gh / ph).log()), dim=-1)
        return deltas / deltas.new_tensor(self.stds)

    def decode(self, boxes: Tensor, deltas: Tensor) -> Tensor:
        """Reference boxes and offsets, broadcast against each other, -> boxes (..., 4)."""
        px, py, pw, ph = _centre(boxes)
        dx, dy, dw, dh = (deltas * deltas.new_tensor(self.stds)).unbind(-1)
        x, y = px + pw * dx, py + ph * dy
        w = pw * dw.clamp(-LARGEST_STEP, LARGEST_STEP).exp()
        h = ph * dh.clamp(-LARGEST_STEP, LARGEST_STEP).exp()
        return torch.stack((x - w / 2, y - h / 2, x + w / 2, y + h / 2), dim=-1)


def clip(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Boxes (B, ..., 4) clipped to images of `sizes` (B, 2), height and width."""
    limits = sizes.flip(-1).to(boxes.dtype).repeat(1, 2)  # (B, 4): width height width height
    limits = limits.reshape(-1, *(1,) * (boxes.ndim - 2), 4)
    return torch.minimum(boxes.clamp(min=0), limits)


def _centre(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x1, y1, x2, y2 = boxes.unbind(-1)
    return (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1


def corners(boxes: Tensor) -> Tensor:
    """Boxes (..., 4) as cx cy w h -> x1 y1 x2 y2."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat((centre - half, centre + half), dim=-1)


def relative(boxes: Tensor, size: Tensor) -> Tensor:
    """Boxes (..., 4) in pixels, x1 y1 x2 y2, of an image of `size` (2,), height and width -> cx cy w h in 0..1."""
    low, high = boxes[..., :2], boxes[..., 2:]
    sides = size.flip(-1).to(boxes.dtype).repeat(2)
    return torch.cat(((low + high) / 2, high - low), dim=-1) / sides


def inverse_sigmoid(x: Tensor, eps: float = 1e-3) -> Tensor:
    """The logit of values clamped to 0..1, finite: numerator and denominator are at least `eps`."""
    x = x.clamp(0, 1)
    return (x.clamp(min=eps) / (1 - x).clamp(min=eps)).log()
