"""Collate samples into a batch."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import get_worker_info

from tetravit.structures import Batch, Sample, Target


def collate(samples: Sequence[Sample], indices: Sequence[int], bucket: int = 1) -> Batch:
    """Collate samples. Class indices, and label maps of one size, become a tensor; other targets stay a list.

    Dense-task images of different sizes are zero-padded on the right and bottom, to sides that are multiples of
    `bucket`; `sizes` holds the sizes without padding.

    Raises:
        ValueError: if images of a classification set differ in size.
    """
    shapes = {tuple(s.image.shape) for s in samples}
    targets: Any = [s.target for s in samples]
    dense = isinstance(targets[0], Target) or (isinstance(targets[0], Tensor) and targets[0].ndim == 2)
    if len(shapes) > 1 and not dense:
        a, b = sorted(shapes)[:2]
        raise ValueError(
            f"The images of a batch must have one size; got {a} and {b}. Let data.augment crop or resize."
        )
    if targets[0] is None:  # an unlabelled set
        targets = None
    elif isinstance(targets[0], int):
        targets = torch.tensor(targets)
    elif isinstance(targets[0], Tensor) and len({t.shape for t in targets}) == 1:
        targets = torch.stack(targets)
    images, sizes = [s.image for s in samples], None
    if dense and (len(shapes) > 1 or any(side % bucket for shape in shapes for side in shape[1:])):
        sizes = torch.tensor([image.shape[-2:] for image in images])
        images = pad_to_largest(images, bucket)
    return Batch(stacked(images), targets, sizes, [s.name for s in samples], list(indices))


def collate_view(images: Sequence[Tensor]) -> Batch:
    """Collate images (C, Hi, Wi) of any sizes, without targets."""
    if len({image.shape for image in images}) == 1:
        return Batch(stacked(images))
    sizes = torch.tensor([image.shape[-2:] for image in images])
    return Batch(stacked(pad_to_largest(images, 1)), sizes=sizes)


def stacked(images: Sequence[Tensor]) -> Tensor:
    """Images of one size -> (B, C, Hi, Wi); channels-last uint8 images stay channels-last."""
    if all(image.dtype == torch.uint8 and image.permute(1, 2, 0).is_contiguous() for image in images):
        rows = [image.permute(1, 2, 0) for image in images]  # (Hi, Wi, C)
        out = to_send((len(rows), *rows[0].shape), torch.uint8)
        return torch.stack(rows, out=out).permute(0, 3, 1, 2)
    return torch.stack(list(images), out=to_send((len(images), *images[0].shape), images[0].dtype))


def to_send(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """An empty tensor; in a loader worker it is allocated in shared memory, so that it is sent without a copy."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=dtype)
    size = math.prod(shape)
    storage = torch.UntypedStorage._new_shared(max(1, size * dtype.itemsize))
    return torch.empty(0, dtype=dtype).set_(storage)[:size].view(shape)


def pad_to_largest(images: Sequence[Tensor], bucket: int) -> list[Tensor]:
    """Images (C, Hi, Wi) zero-padded on the right and bottom to the largest sides, rounded up to `bucket`."""
    height, width = (-(-max(image.shape[side] for image in images) // bucket) * bucket for side in (1, 2))
    return [F.pad(x, (0, width - x.shape[2], 0, height - x.shape[1])) for x in images]
