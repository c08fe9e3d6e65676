"""Preprocess pictures for a model: one function for evaluation, prediction and users."""

import math
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tetravit.data.decode import decode, to_channels, to_rgb
from tetravit.data.resizing import center_crop, fitted, normalized, per_channel, resize
from tetravit.structures import Preprocess


def eval_transform(p: Preprocess) -> Callable[[Tensor], Tensor]:
    """The transform described by `p`: uint8, or float in [0, 1], (C, Hi, Wi) -> float (C, height, width).

    The output size is `p.size`, unless `p.mode` is `fit`.
    """
    return _EvalTransform(p)


def scaled(p: Preprocess, scale: float) -> Preprocess:
    """The preprocessing `p` with output sizes multiplied by `scale`, from the original picture.

    Source: mmsegmentation 0.30.0, MultiScaleFlipAug with img_ratios: limits are truncated to whole pixels.
    """
    longest = None if p.longest is None else max(1, int(p.longest * scale))
    height, width = (max(1, int(side * scale)) for side in p.sides)
    return replace(p, size=height if isinstance(p.size, int) else (height, width), longest=longest)


def preprocess(image: str | os.PathLike[str] | Image.Image | np.ndarray | Tensor, p: Preprocess) -> Tensor:
    """Preprocess any picture -> float (C, height, width), with as many channels as `p` has means.

    Args:
        image: a path; a Pillow image; an array (Hi, Wi, C) or (Hi, Wi), a tensor (C, Hi, Wi) or (1, Hi, Wi), each
            uint8 or float in [0, 1]. Gray pictures become RGB, and RGB pictures gray, as `p` requires.
        p: preprocessing of the weights.

    Raises:
        BadImage: for a file that cannot be read.
        ValueError: for an array or tensor of unsupported shape or dtype.
    """
    return eval_transform(p)(pixels(image, p.channels))


class _EvalTransform:
    def __init__(self, p: Preprocess) -> None:
        self.p = p
        self.mean, self.std = per_channel(p.mean), per_channel(p.std)

    def __call__(self, image: Tensor) -> Tensor:
        p = self.p
        size = resized((image.shape[-2], image.shape[-1]), p)
        # The dense models were trained and measured with OpenCV's bilinear resizing, which does not antialias.
        image = resize(image, size, p.interpolation, antialias=p.mode != "fit")
        if image.is_floating_point():
            image = image.clamp(0, 1)  # cubic interpolation overshoots
        if p.mode == "center":
            image = center_crop(image, p.sides)
        return normalized(image, self.mean, self.std)


def resized(size: tuple[int, int], p: Preprocess) -> tuple[int, int]:
    """(height, width) of a picture after resizing, before the centre crop of mode `center`."""
    if p.mode == "fit":
        return fitted(size, min(p.sides), p.longest)
    if p.mode == "squash":
        return p.sides
    if not isinstance(p.size, int):
        return covering(size, p.size, p.crop)
    short = math.floor(p.size / p.crop)
    height, width = size
    if height <= width:
        return short, int(short * width / height)
    return int(short * height / width), short


def covering(size: tuple[int, int], sides: tuple[int, int], crop: float) -> tuple[int, int]:
    """(height, width) after scaling, such that a centre crop of `sides` covers at most the share `crop` of a side."""
    wanted = [math.floor(side / crop) for side in sides]
    scale = max(want / side for want, side in zip(wanted, size, strict=True))
    height, width = (max(want, round(side * scale)) for want, side in zip(wanted, size, strict=True))
    return height, width


def pixels(image: Any, channels: int = 3) -> Tensor:
    """Decode any picture -> uint8, or float in [0, 1], (channels, Hi, Wi)."""
    if isinstance(image, (str, os.PathLike)):
        return decode(image, layout="decoded", channels=channels)
    if isinstance(image, Image.Image):
        try:
            image = to_rgb(image) if channels in (1, 3) else np.array(image)
        except ValueError as error:
            raise ValueError(f"The image cannot be read: {error}.") from None
    if isinstance(image, np.ndarray):
        image = torch.from_numpy(np.ascontiguousarray(image))
        image = image[None] if image.ndim == 2 else image.movedim(-1, 0)
    if not isinstance(image, Tensor):
        raise ValueError(
            f"An image is a path, a Pillow image, an array or a tensor; got {type(image).__name__}."
        )
    kind = image.dtype == torch.uint8 or image.is_floating_point()
    fits = image.ndim == 3 and (len(image) == channels or (len(image), channels) in ((1, 3), (3, 1)))
    if not fits or 0 in image.shape or not kind:
        shapes = {
            1: "(1, Hi, Wi) or (3, Hi, Wi), an array (Hi, Wi) or (Hi, Wi, 3)",
            3: "(3, Hi, Wi) or (1, Hi, Wi), an array (Hi, Wi, 3) or (Hi, Wi)",
        }.get(channels, f"({channels}, Hi, Wi), an array (Hi, Wi, {channels})")
        raise ValueError(
            f"An image tensor is {shapes},"
            f" uint8 or float in [0, 1]; got {tuple(image.shape)} {str(image.dtype).removeprefix('torch.')}."
        )
    if channels == 1 and len(image) == 3 and image.is_floating_point():
        return (image * image.new_tensor((0.299, 0.587, 0.114))[:, None, None]).sum(0, keepdim=True)
    return to_channels(image, channels, "(image)")
