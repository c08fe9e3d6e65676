"""Resize and normalize a picture for evaluation and prediction, without the slow import of torchvision.

Shapes: C channels, (Hi, Wi) pixels.
"""

import platform
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Interpolation = Literal["bicubic", "bilinear"]


def resize(image: Tensor, size: tuple[int, int], interpolation: Interpolation, *, antialias: bool) -> Tensor:
    """uint8 or float (C, Hi, Wi) -> (C, height, width) of the same dtype; unchanged if it has that size.

    Source: torchvision 0.29 transforms.v2.functional.resize, bitwise equal.
    """
    if tuple(image.shape[-2:]) == size:
        return image
    kind, batch = image.dtype, image[None]
    native = kind == torch.float32 or (kind == torch.uint8 and _takes_bytes(interpolation, image.device))
    whole = batch.is_contiguous(memory_format=torch.channels_last) and image.numel() != batch.stride(0)
    if whole or (kind == torch.uint8 and native and _by_pixels(image)):  # keeps the memory format
        channels, height, width = image.shape
        row = max(image.stride(1), channels * width)
        batch = image.as_strided((1, channels, height, width), (row * height, 1, row, channels))
    if not native and kind != torch.float64:
        batch = batch.float()
    batch = F.interpolate(batch, size, mode=interpolation, align_corners=False, antialias=antialias)
    if kind == torch.uint8 and not native:
        batch = (batch.clamp_(0, 255) if interpolation == "bicubic" else batch).round_()
    return batch.to(kind)[0]


def _by_pixels(image: Tensor) -> bool:
    """Whether (C, Hi, Wi) is channels-last in memory, as a crop of a decoded image is."""
    channels, _, width = image.shape
    a, row, b = image.stride()
    return channels > 1 and a == 1 and b == channels and row >= channels * width


def _takes_bytes(interpolation: Interpolation, device: torch.device) -> bool:
    """Whether torch resizes uint8 without conversion to float."""
    if device.type != "cpu":
        return False
    if interpolation == "bicubic":
        return True
    fast = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    return fast or platform.machine() in ("aarch64", "arm64")


def center_crop(image: Tensor, size: tuple[int, int]) -> Tensor:
    """The center crop (C, height, width) of an image; smaller images are zero-padded."""
    (height, width), (rows, columns) = size, image.shape[-2:]
    if rows < height or columns < width:
        left, top = max(0, (width - columns) // 2), max(0, (height - rows) // 2)
        right, bottom = max(0, (width - columns + 1) // 2), max(0, (height - rows + 1) // 2)
        image = F.pad(image, (left, right, top, bottom))
        rows, columns = image.shape[-2:]
    y, x = round((rows - height) / 2.0), round((columns - width) / 2.0)
    return image[..., y : y + height, x : x + width]


def normalized(image: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 (or float in [0, 1]) (C, Hi, Wi) -> float32 (x - mean) / std, contiguous. mean, std: (C, 1, 1)."""
    x = image.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    if not image.is_floating_point():
        x.div_(255)
    return x.sub_(mean).div_(std)


def per_channel(values: Sequence[float]) -> Tensor:
    """Values as (C, 1, 1) float32."""
    return torch.tensor(values).view(-1, 1, 1)


def fitted(size: tuple[int, int], short: int, longest: int | None = None) -> tuple[int, int]:
    """(height, width) after scaling the short side to `short` pixels, with the long side at most `longest`.

    Source: mmcv 1.x, rescale_size: sides are rounded half up.
    """
    scale = short / min(size)
    if longest is not None:
        scale = min(scale, longest / max(size))
    height, width = (max(1, int(side * scale + 0.5)) for side in size)
    return height, width
