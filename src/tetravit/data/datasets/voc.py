"""Pascal VOC, segmentation (Everingham et al.): 1,464 images to train, 1,449 to validate in 2012, 21 classes.

ROOT holds VOCdevkit/VOC2012 as released; torchvision finds the files.
"""

from pathlib import Path

from torchvision import datasets

from tetravit.data.datasets.base import Root, Split, check_split, local_root
from tetravit.data.label_maps import LabelMaps
from tetravit.data.palettes import VOC


class VOCSegmentation(LabelMaps):
    """Pascal VOC: photographs, 21 classes of pixels.

    Labels are uint8, 0 (background) to 20, and 255 around objects.

    Args:
        root: the folder, see above.
        split: "train" or "val".
        year: of the release, "2007" to "2012".

    Raises:
        ValueError: if the files are missing, or there was no such release.
    """

    def __init__(self, root: Root, split: Split, *, year: str = "2012") -> None:
        check_split(split)
        root = local_root("voc_seg", root)
        if year not in map(str, range(2007, 2013)):
            raise ValueError(f"year is 2007 to 2012; got {year!r}.")
        lists = root / "VOCdevkit" / f"VOC{year}" / "ImageSets" / "Segmentation"
        try:
            found = datasets.VOCSegmentation(root, year=year, image_set=split)
        except (RuntimeError, OSError):
            raise ValueError(
                f"{str(root)!r} does not hold VOCdevkit/VOC{year} with its segmentation as released."
            ) from None
        pairs = [(Path(a), Path(b)) for a, b in zip(found.images, found.masks, strict=True)]
        if not pairs:
            raise ValueError(f"{str(lists / f'{split}.txt')!r} lists no images.")
        super().__init__(pairs, VOC, root=root)


DATASETS = {"voc_seg": VOCSegmentation}
