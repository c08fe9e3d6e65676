"""Tiled detection in pictures far larger than the training images, with merging.

Shapes: M objects.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from tetravit.structures import Detections

SAME = 0.5  # IoU above which two detections of a class are the same object
WITHIN = 0.6  # a truncated detection covered by another one to this share is dropped
EDGE = 2.0  # pixels: boxes this near to an inner edge of a tile count as truncated

View = tuple[int, int, int, int]  # x1 y1 x2 y2 in pixels of the picture


def views(height: int, width: int, side: int, stride: int) -> Iterator[View]:
    """The whole picture, for large objects, then tiles of `side`; the last of a row or column is shifted inwards."""
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
    tiles: list[tuple[View, Detections]], height: int, width: int, *, class_agnostic: bool = False
) -> Detections:
    """Merge detections of several views of a picture, boxes in its pixels: each object once, best first.

    Boxes truncated by an inner edge of a tile rank after complete ones, and are dropped if a better box of their
    class covers most of them; with `class_agnostic`, of any class. Masks follow their boxes.
    """
    boxes = torch.cat([d.boxes for _, d in tiles])
    scores = torch.cat([d.scores for _, d in tiles])
    labels = torch.cat([d.labels for _, d in tiles])
    cut = torch.cat([_cut(d.boxes, view, height, width) for view, d in tiles])
    order = torch.argsort(scores - 2 * cut.to(scores.dtype), descending=True, stable=True)
    rivals = torch.zeros_like(labels) if class_agnostic else labels
    kept = order[_survivors(boxes[order], rivals[order], cut[order])]
    kept = kept[torch.argsort(scores[kept], descending=True, stable=True)]
    masks = None
    if all(d.masks is not None for _, d in tiles):
        masks = torch.cat([d.masks for _, d in tiles])[kept]  # type: ignore[misc]
    return Detections(boxes[kept], scores[kept], labels[kept], masks)


def _cut(boxes: Tensor, view: View, height: int, width: int) -> Tensor:
    """Whether boxes (M, 4) touch an edge of their view inside the picture: bool (M,)."""
    x1, y1, x2, y2 = view
    inner = torch.tensor([x1 > 0, y1 > 0, x2 < width, y2 < height], device=boxes.device)
    edges = boxes.new_tensor([x1, y1, x2, y2])
    return (((boxes - edges).abs() <= EDGE) & inner).any(dim=1)


def _survivors(boxes: Tensor, labels: Tensor, cut: Tensor) -> Tensor:
    """Indices of the boxes (M, 4) kept by NMS, best first."""
    from torchvision.ops import box_area, box_iou  # slow import

    device = boxes.device
    boxes, labels, cut = boxes.cpu(), labels.cpu(), cut.cpu()
    area = box_area(boxes)
    alive = torch.ones(len(boxes), dtype=torch.bool)
    for i in range(len(boxes)):  # row by row: hundreds of tiles have many thousands of boxes
        if alive[i]:
            rest = slice(i + 1, None)
            iou = box_iou(boxes[i : i + 1], boxes[rest])[0]
            common = iou * (area[i] + area[rest]) / (1 + iou)
            same = (iou > SAME) | ((common > WITHIN * area[rest]) & cut[rest])  # suppressed by i
            alive[rest] &= ~(same & (labels[rest] == labels[i]))
    return alive.nonzero().flatten().to(device)


def find_in_tiles(
    find: Callable[[list[Tensor]], list[Detections]],
    picture: Tensor,
    side: int,
    stride: int,
    batch: int = 1,
    *,
    whole: Callable[[list[Tensor]], list[Detections]] | None = None,
    class_agnostic: bool = False,
) -> Detections:
    """Apply `find` to every view of a picture uint8 (3, Hi, Wi), and merge the results.

    find: list of image parts -> detections of each, in pixels of the part, masks relative to their boxes. It is
    called with up to `batch` tiles of one size. whole: the same for the whole picture, called first; None: `find`.
    class_agnostic: see `merge`.
    """
    height, width = picture.shape[1:]
    everything, *tiles = views(height, width, side, stride)
    calls = [(whole or find, [everything])]
    calls += [(find, tiles[i : i + batch]) for i in range(0, len(tiles), batch)]
    detections = []
    for call, chunk in calls:
        results = call([picture[:, y1:y2, x1:x2] for x1, y1, x2, y2 in chunk])
        for view, part in zip(chunk, results, strict=True):
            shift = part.boxes.new_tensor([*view[:2], *view[:2]])
            detections.append((view, Detections(part.boxes + shift, part.scores, part.labels, part.masks)))
    return merge(detections, height, width, class_agnostic=class_agnostic)
