"""Drawn shapes with label maps or objects; generated, no download. See `data.shapes`."""

import numpy as np
import torch

from tetravit.data.datasets.base import Dataset, Root, Split, check_split, no_root
from tetravit.data.shapes import CLASSES, SEGMENTS, SMALLEST, Drawing, draw
from tetravit.structures import Sample, Target

COUNTS = {"train": 20_000, "val": 200}  # default number of drawings


class Shapes(Dataset):
    """Drawings by index, uint8 (3, size, size), drawn on access.

    Args:
        root: None; the set has no folder.
        split: "train" or "val".
        size: side in pixels.
        count: number of drawings; None: 20,000 train, 200 val.
        most: maximum number of shapes in a drawing.

    Raises:
        ValueError: for a root, an unknown split, a side below 32 pixels, or counts below 1.
    """

    set_name: str
    in_memory = True  # decoding is free: workers would only add overhead

    def __init__(
        self, root: Root, split: Split, *, size: int = 128, count: int | None = None, most: int = 5
    ) -> None:
        check_split(split)
        no_root(self.set_name, root)
        self.count = COUNTS[split] if count is None else count
        if size < SMALLEST or self.count < 1 or most < 1:
            raise ValueError(
                f"{self.set_name} takes size from {SMALLEST} pixels, count and most from 1;"
                f" got size={size}, count={self.count}, most={most}."
            )
        self.split, self.size, self.most = split, size, most

    def __len__(self) -> int:
        return self.count

    def drawing(self, index: int) -> Drawing:
        if not 0 <= index < self.count:
            raise IndexError(index)
        return draw(index, split="train" if self.split == "train" else "val", size=self.size, most=self.most)

    def name(self, index: int) -> str:
        return f"{self.set_name}/{self.split}/{index}"


class ShapesSeg(Shapes):
    """Drawings of shapes for segmentation, 9 classes; no download.

    Labels are uint8 indices into `class_names`; 255 on pixels crossed by an outline.
    """

    kind = "segment"
    set_name = "shapes_seg"
    class_names = SEGMENTS
    num_classes = len(SEGMENTS)

    def __getitem__(self, index: int) -> Sample:
        drawn = self.drawing(index)
        return Sample(_pixels(drawn), torch.from_numpy(drawn.labels), self.name(index))


class ShapesDet(Shapes):
    """Drawings of shapes for detection, 8 classes with boxes and masks; no download.

    Boxes enclose the visible part of an object; areas are in pixels.
    """

    kind = "detect"
    set_name = "shapes_det"
    class_names = CLASSES
    num_classes = len(CLASSES)

    def __getitem__(self, index: int) -> Sample:
        drawn = self.drawing(index)
        masks = torch.from_numpy(np.stack([shape.mask for shape in drawn.shapes]))  # (M, H, W)
        target = Target(
            boxes=torch.tensor([shape.box for shape in drawn.shapes], dtype=torch.float32),
            labels=torch.tensor([shape.label for shape in drawn.shapes]),
            masks=masks,
            crowd=torch.zeros(len(masks), dtype=torch.bool),
            area=masks.sum((1, 2)).float(),
            image_id=index,
            size=(self.size, self.size),
        )
        return Sample(_pixels(drawn), target, self.name(index))


def _pixels(drawn: Drawing) -> torch.Tensor:
    return torch.from_numpy(drawn.image).permute(2, 0, 1).contiguous()  # (3, H, W)


DATASETS = {"shapes_seg": ShapesSeg, "shapes_det": ShapesDet}
