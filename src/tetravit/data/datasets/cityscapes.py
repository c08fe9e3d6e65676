"""Cityscapes (Cordts et al. 2016), fine annotations: 2,975 training and 500 validation images, 19 classes.

ROOT contains leftImg8bit/ and gtFine/ as released; torchvision lists the files.
"""

from pathlib import Path

import torch
from torch import Tensor

from tetravit.data.datasets.base import Root, Split, check_split, local_root
from tetravit.data.label_maps import IGNORE, UNKNOWN, LabelMaps
from tetravit.data.palettes import cityscapes
from tetravit.data.parts import PARTS
from tetravit.data.upright import Orientation


class Cityscapes(LabelMaps):
    """Cityscapes: street scenes, 19 classes.

    Labels are uint8, train ids 0 to 18, and 255 for ignored pixels.

    Args:
        root: the folder; its layout is at the top of this file.
        split: "train", "val" or "test".
        orientation: whether label maps of images with an EXIF rotation fit the "upright" or the "stored" pixels.

    Raises:
        ValueError: if the files are missing.
    """

    def __init__(self, root: Root, split: Split, *, orientation: Orientation | None = None) -> None:
        from torchvision import datasets  # slow import

        check_split(split, PARTS)
        root = local_root("cityscapes", root)
        try:
            listed = datasets.Cityscapes(root, split=split, mode="fine", target_type="semantic")
        except RuntimeError:
            raise ValueError(
                f"{str(root)!r} does not hold Cityscapes as released: leftImg8bit/{split} and gtFine/{split}."
            ) from None
        pairs = [(Path(a), Path(b[0])) for a, b in zip(listed.images, listed.targets, strict=True)]
        if not pairs:
            raise ValueError(f"There are no images in {str(root / 'leftImg8bit' / split)!r}.")
        super().__init__(
            pairs, cityscapes()[0], root=root, convert=_to_training, orientation=orientation, split=split
        )


def _to_training(ids: Tensor) -> Tensor:
    """Label ids of the files -> train ids."""
    from torchvision import datasets

    table = torch.full((256,), UNKNOWN, dtype=torch.uint8)
    for row in datasets.Cityscapes.classes:
        if row.id >= 0:
            table[row.id] = row.train_id
    table[IGNORE] = IGNORE
    ids = ids.long()
    return table[ids.clamp(0, 255)].masked_fill((ids < 0) | (ids > 255), UNKNOWN)


DATASETS = {"cityscapes": Cityscapes}
