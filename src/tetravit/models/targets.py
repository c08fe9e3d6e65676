"""Checks of a detector's images and targets before any computation: one line per fault.

Shapes: B images, M objects, (Hi, Wi) the batch in pixels.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tetravit.structures import Batch, Target


def check_images(images: Any) -> None:
    """Raises: ValueError if `images` is not a non-empty float tensor (B, C, Hi, Wi)."""
    if not isinstance(images, Tensor):
        raise ValueError(
            f"images is one tensor (B, C, Hi, Wi), padded where sizes differ; got a {type(images).__name__}."
        )
    if images.ndim != 4 or not len(images):
        raise ValueError(f"images is (B, C, Hi, Wi) with B of 1 or more; got {tuple(images.shape)}.")
    if not images.is_floating_point():
        raise ValueError(f"images are floats, normalized; got {images.dtype}: model.preprocess makes them.")


def check_targets(batch: Batch, *, masks: bool) -> Sequence[Target]:
    """Check the targets of a batch.

    masks: whether the head trains on masks.

    Raises:
        ValueError: if the number of targets differs from the number of images, tensors of a target do not match each
            other or the batch, a box is not finite, inverted, outside its image or normalized to 0..1, or the head
            trains on masks and no object of the batch has one.
    """
    targets, count = batch.targets, len(batch.images)
    if not isinstance(targets, Sequence):
        raise ValueError(f"targets is a list with a Target per image; got a {type(targets).__name__}.")
    if len(targets) != count:
        raise ValueError(f"targets holds one Target per image: {count} images; got {len(targets)} targets.")
    canvas = tuple(batch.images.shape[2:])
    sizes = [canvas] * count if batch.sizes is None else [(int(h), int(w)) for h, w in batch.sizes.tolist()]
    for i, target in enumerate(targets):
        _check(target, _name(batch, i), canvas, sizes[i])
    _check_boxes(targets, batch, sizes)
    if masks and any(len(t.boxes) for t in targets) and all(t.masks is None for t in targets):
        raise ValueError(
            "The head trains on masks; no target of the batch has any: give masks, or take a head without them"
            " (head='retinanet')."
        )
    return targets


def _check(target: Any, where: str, canvas: tuple[int, ...], own: tuple[int, ...]) -> None:
    """canvas, own: height and width of the batch, and of the image without its padding; masks have one of the two."""
    if not isinstance(target, Target):
        raise ValueError(f"targets holds a Target per image; got a {type(target).__name__} for {where}.")
    boxes, labels = target.boxes, target.labels
    if not isinstance(boxes, Tensor) or boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes are (M, 4), x1 y1 x2 y2 in pixels; got {_shape(boxes)} in {where}.")
    if not boxes.is_floating_point():
        raise ValueError(f"boxes are floats; got {boxes.dtype} in {where}.")
    if not isinstance(labels, Tensor) or labels.shape != boxes.shape[:1]:
        raise ValueError(
            f"labels are (M,), one per box: {len(boxes)} boxes; got {_shape(labels)} in {where}."
        )
    if labels.is_floating_point() or labels.dtype in (torch.bool, torch.complex64):
        raise ValueError(f"labels are integers; got {labels.dtype} in {where}.")
    fitting = {(len(boxes), *canvas), (len(boxes), *own)}
    if target.masks is not None and tuple(target.masks.shape) not in fitting:
        raise ValueError(
            f"masks are (M, Hi, Wi), {(len(boxes), *canvas)} here; got {_shape(target.masks)} in {where}."
        )
    if target.masks is not None and target.masks.is_floating_point():
        raise ValueError(f"masks are bool; got {target.masks.dtype} in {where}.")
    if target.crowd is not None and target.crowd.shape != boxes.shape[:1]:
        raise ValueError(
            f"crowd is (M,), one per box: {len(boxes)} boxes; got {_shape(target.crowd)} in {where}."
        )


def _check_boxes(targets: Sequence[Target], batch: Batch, sizes: Sequence[tuple[int, ...]]) -> None:
    """sizes: height and width of each image without its padding. One GPU synchronisation per batch."""
    boxes = torch.cat([target.boxes for target in targets])  # (all M, 4)
    if not len(boxes):
        return
    limits = [
        boxes.new_tensor([w, h]).expand(len(t.boxes), 2) for (h, w), t in zip(sizes, targets, strict=True)
    ]
    low, high, limit = boxes[:, :2], boxes[:, 2:], torch.cat(limits)
    wrong = {
        "is not finite": ~boxes.isfinite().all(dim=1),
        "is inverted; boxes are x1 y1 x2 y2, not x y width height": (high < low).any(dim=1),
        "lies outside": ((high <= 0) | (low >= limit)).any(dim=1),
    }
    shares = ((boxes >= 0) & (boxes <= 1)).all()
    if not torch.stack([*(w.any() for w in wrong.values()), shares]).any():
        return
    owners = [i for i, target in enumerate(targets) for _ in range(len(target.boxes))]
    for cause, which in wrong.items():
        if which.any():
            at = int(which.int().argmax())
            (height, width), box = sizes[owners[at]], [round(v, 2) for v in boxes[at].tolist()]
            where = f"{_name(batch, owners[at])}, {width} x {height} pixels" if "outside" in cause else ""
            where = where or _name(batch, owners[at])
            raise ValueError(
                f"A box {cause}: {box} in {where} ({int(which.sum())} of {len(boxes)} boxes of the batch)."
            )
    raise ValueError(
        f"boxes are in pixels; all {len(boxes)} of the batch lie in 0..1: multiply by the width and height."
    )


def _name(batch: Batch, i: int) -> str:
    return batch.names[i] if i < len(batch.names) else f"image {i} of the batch"


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else f"a {type(value).__name__}"
