"""Objects in pictures that are far larger than what a model was trained for: looked at in tiles, then merged.

Shapes: M objects.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torchvision.ops import box_area, box_iou

from tetravit.structures import Detections

SAME = 0.5  # two detections of a class that overlap more are one object
WITHIN = 0.6  # a part that another detection covers so far belongs to it
EDGE = 2.0  # pixels: what comes so near to an inner edge of a tile is cut by it

View = tuple[int, int, int, int]  # x1 y1 x2 y2 in pixels of the picture


def views(height: int, width: int, side: int, stride: int) -> Iterator[View]:
    """All of a picture, for what is large; then tiles of `side`, the last of a row or column moved inwards."""
    yield 0, 0, width, height
    if height <= side and width <= side:
        return
    for y in _starts(height, side, stride):
        for x in _starts(width, side, stride):
            yield x, y, min(x + side, width), min(y + side, height)


def _starts(length: int, side: int, stride: int) -> list[int]:
    last = max(0, length - side)
    return [*range(0, last, stride), last]


def merge(
    found: list[tuple[View, Detections]], height: int, width: int, most: int | None = None
) -> Detections:
    """Detections of several views of a picture, boxes in its pixels, -> each object once, best first.

    What an inner edge of a tile cuts counts after all that is whole, and goes where something better of its class
    covers most of it. most: how many stay; None: all. Masks, of whatever kind, follow as they are.
    """
    boxes = torch.cat([d.boxes for _, d in found])
    scores = torch.cat([d.scores for _, d in found])
    labels = torch.cat([d.labels for _, d in found])
    cut = torch.cat([_cut(d.boxes, view, height, width) for view, d in found])
    order = torch.argsort(scores - 2 * cut.to(scores.dtype), descending=True, stable=True)
    kept = order[_survivors(boxes[order], labels[order], cut[order])]
    kept = kept[torch.argsort(scores[kept], descending=True, stable=True)][:most]
    masks = None
    if all(d.masks is not None for _, d in found):
        masks = torch.cat([d.masks for _, d in found])[kept]  # type: ignore[misc]
    return Detections(boxes[kept], scores[kept], labels[kept], masks)


def _cut(boxes: Tensor, view: View, height: int, width: int) -> Tensor:
    """Which boxes (M, 4) reach an edge of their view that is no edge of the picture: bool (M,)."""
    x1, y1, x2, y2 = view
    inner = torch.tensor([x1 > 0, y1 > 0, x2 < width, y2 < height], device=boxes.device)
    edges = boxes.new_tensor([x1, y1, x2, y2])
    return (((boxes - edges).abs() <= EDGE) & inner).any(dim=1)


def _survivors(boxes: Tensor, labels: Tensor, cut: Tensor) -> Tensor:
    """Positions of the boxes (M, 4), best first, that no better one of their class stands for."""
    iou = box_iou(boxes, boxes)
    area = box_area(boxes)
    common = iou * (area[:, None] + area) / (1 + iou)
    same = (iou > SAME) | ((common > WITHIN * area) & cut)  # [i, j]: i stands for j
    same = (same & (labels[:, None] == labels)).cpu()
    alive = torch.ones(len(boxes), dtype=torch.bool)
    for i in range(len(boxes)):
        if alive[i]:
            alive[i + 1 :] &= ~same[i, i + 1 :]
    return alive.nonzero().flatten().to(boxes.device)


def find_in_tiles(
    find: Callable[[Tensor], Detections], picture: Tensor, side: int, stride: int, most: int | None = None
) -> Detections:
    """Ask `find` about every view of a picture uint8 (3, Hi, Wi), and merge its answers.

    find: a part of the picture -> its detections, in pixels of the part, masks in the frames of the boxes.
    """
    height, width = picture.shape[1:]
    found = []
    for view in views(height, width, side, stride):
        x1, y1, x2, y2 = view
        part = find(picture[:, y1:y2, x1:x2])
        shift = part.boxes.new_tensor([x1, y1, x1, y1])
        found.append((view, Detections(part.boxes + shift, part.scores, part.labels, part.masks)))
    return merge(found, height, width, most)
