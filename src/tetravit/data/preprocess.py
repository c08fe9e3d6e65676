"""Pictures -> the tensor some weights were trained for: one way for evaluation, prediction and users."""

import math
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from tetravit.data.decode import decode
from tetravit.data.transforms.base import INTERPOLATIONS, fitted
from tetravit.data.transforms.normalize import Normalize
from tetravit.structures import Preprocess


def eval_transform(p: Preprocess) -> Callable[[Tensor], Tensor]:
    """The transform that `p` describes: uint8, or float in [0, 1], (3, Hi, Wi) -> float (3, height, width).

    The result is a square of `size`, unless `p.mode` is `fit`.
    """
    return _EvalTransform(p)


def scaled(p: Preprocess, scale: float) -> Preprocess:
    """The preprocessing that makes a picture `scale` times as large as `p` does, from the original.

    Source: mmsegmentation 0.30.0, MultiScaleFlipAug with img_ratios: limits are cut to whole pixels.
    """
    longest = None if p.longest is None else max(1, int(p.longest * scale))
    return replace(p, size=max(1, int(p.size * scale)), longest=longest)


def preprocess(image: str | os.PathLike[str] | Image.Image | np.ndarray | Tensor, p: Preprocess) -> Tensor:
    """Any picture -> float (3, size, size).

    Args:
        image: a path; a Pillow image; an array (Hi, Wi, 3) or (Hi, Wi), a tensor (3, Hi, Wi) or (1, Hi,
            Wi), each uint8 or float in [0, 1].
        p: what the weights expect.

    Raises:
        BadImage: for a file that cannot be read.
        ValueError: for an array or tensor of another shape or type.
    """
    return eval_transform(p)(pixels(image))


class _EvalTransform:
    def __init__(self, p: Preprocess) -> None:
        self.p = p
        self.interpolation = INTERPOLATIONS[p.interpolation]
        self.normalize = Normalize(p.mean, p.std)

    def __call__(self, image: Tensor) -> Tensor:
        p = self.p
        if p.mode == "fit":
            size = list(fitted((image.shape[-2], image.shape[-1]), p.size, p.longest))
        else:
            size = [p.size, p.size] if p.mode == "squash" else [math.floor(p.size / p.crop)]
        # The dense models were trained and measured with OpenCV's bilinear resizing, which does not smooth.
        image = F.resize(image, size, interpolation=self.interpolation, antialias=p.mode != "fit")
        if image.is_floating_point():
            image = image.clamp(0, 1)  # cubic interpolation overshoots
        if p.mode == "center":
            image = F.center_crop(image, [p.size, p.size])
        out: Tensor = self.normalize(image)
        return out


def pixels(image: Any) -> Tensor:
    """Any picture -> uint8, or float in [0, 1], (3, Hi, Wi)."""
    if isinstance(image, (str, os.PathLike)):
        return decode(image, layout="decoded")
    if isinstance(image, Image.Image):
        image = np.array(image.convert("RGB"))
    if isinstance(image, np.ndarray):
        image = torch.from_numpy(np.ascontiguousarray(image))
        image = image[None] if image.ndim == 2 else image.movedim(-1, 0)
    if not isinstance(image, Tensor):
        raise ValueError(
            f"An image is a path, a Pillow image, an array or a tensor; got {type(image).__name__}."
        )
    kind = image.dtype == torch.uint8 or image.is_floating_point()
    if image.ndim != 3 or image.shape[0] not in (1, 3) or 0 in image.shape or not kind:
        raise ValueError(
            "An image tensor is (3, Hi, Wi) or (1, Hi, Wi), an array (Hi, Wi, 3) or (Hi, Wi),"
            f" uint8 or float in [0, 1]; got {tuple(image.shape)} {str(image.dtype).removeprefix('torch.')}."
        )
    return image.expand(3, -1, -1)
