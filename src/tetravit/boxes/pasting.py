"""Mask pasting: resample a mask from its box to the image.

Source: Mask R-CNN, arXiv:1703.06870; sampled at pixel centres as in mmdet 2.28.2 FCNMaskHead.
"""

import math

import torch
from torch import Tensor

THRESHOLD = 0.5


def paste_masks(probabilities: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Mask probabilities (M, h, w) in boxes (M, 4) -> bool masks (M, Hi, Wi) of an image of `size`."""
    masks = torch.zeros((len(boxes), *size), dtype=torch.bool, device=boxes.device)
    for mask, probability, box, (x1, y1, x2, y2) in zip(
        masks, probabilities, boxes, reach(boxes, size), strict=True
    ):
        masks_here = paste(probability, box, (x1, y1, x2, y2)) >= THRESHOLD
        mask[y1:y2, x1:x2] = masks_here
    return masks


def reach(boxes: Tensor, size: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """Pixel windows (x1, y1, x2, y2) that each box (M, 4) can affect in an image of `size` (Hi, Wi)."""
    height, width = size
    return [
        (
            min(max(math.floor(x1) - 1, 0), width),
            min(max(math.floor(y1) - 1, 0), height),
            max(min(math.ceil(x2) + 1, width), 0),
            max(min(math.ceil(y2) + 1, height), 0),
        )
        for x1, y1, x2, y2 in boxes.tolist()
    ]


def paste(probability: Tensor, box: Tensor, window: tuple[int, int, int, int]) -> Tensor:
    """Mask probabilities (h, w) in `box` (4,) -> the probability of every pixel of `window`, float32."""
    x1, y1, x2, y2 = window
    probability, box = probability.float(), box.float()
    rows = _weights(y1, y2, box[1], box[3], probability.shape[0])
    columns = _weights(x1, x2, box[0], box[2], probability.shape[1])
    with torch.autocast(probability.device.type, enabled=False):
        return rows @ probability @ columns.T


def _weights(start: int, stop: int, low: Tensor, high: Tensor, cells: int) -> Tensor:
    """Interpolation weights of pixels and cells along an axis (n, cells): linear between centres, zero outside."""
    pixels = torch.arange(start, max(start, stop), device=low.device, dtype=low.dtype) + 0.5
    position = (pixels - low) / (high - low).clamp(min=1e-6) * cells - 0.5
    centres = torch.arange(cells, device=low.device, dtype=low.dtype)
    return (1 - (position[:, None] - centres).abs()).clamp(min=0)
