"""Pascal VOC segmentation (Everingham et al.): 1,464 training and 1,449 validation images in 2012, 21 classes.

ROOT contains VOCdevkit/VOC2012 as released: image names in ImageSets/Segmentation, one per line, images in JPEGImages
and label maps in SegmentationClass. Label maps may also use Pascal VOC's colours.
"""

from pathlib import Path

from tetravit.data.datasets.base import Root, Split, check_split, local_root
from tetravit.data.label_maps import LabelMaps
from tetravit.data.lookup import Lookup
from tetravit.data.palettes import VOC, voc_colour
from tetravit.data.parts import PARTS
from tetravit.data.text import read_lines
from tetravit.data.upright import Orientation


class VOCSegmentation(LabelMaps):
    """Pascal VOC semantic segmentation, 21 classes.

    Labels are uint8, 0 (background) to 20, and 255 at object borders.

    Args:
        root: the folder; its layout is at the top of this file.
        split: "train", "val" or "test".
        year: of the release, "2007" to "2012".
        orientation: whether label maps of images with an EXIF rotation fit the "upright" or the "stored" pixels.

    Raises:
        ValueError: if the files are missing, or the year is unknown.
    """

    def __init__(
        self, root: Root, split: Split, *, year: str = "2012", orientation: Orientation | None = None
    ) -> None:
        check_split(split, PARTS)
        folder = local_root("voc_seg", root)
        if year not in map(str, range(2007, 2013)):
            raise ValueError(f"year is 2007 to 2012; got {year!r}.")
        devkit = folder / "VOCdevkit" / f"VOC{year}"
        chosen = devkit / "ImageSets" / "Segmentation" / f"{split}.txt"
        images, labels = devkit / "JPEGImages", devkit / "SegmentationClass"
        if not (chosen.is_file() and images.is_dir() and labels.is_dir()):
            raise ValueError(
                f"{str(folder)!r} does not hold VOCdevkit/VOC{year} with its segmentation as released."
            )
        names = read_lines(chosen)
        if not names:
            raise ValueError(f"{str(chosen)!r} lists no images.")
        pairs = list(zip(_files(names, images, ".jpg"), _files(names, labels, ".png"), strict=True))
        lost = [image for image, _ in pairs if not image.is_file()]
        if lost:
            raise ValueError(
                f"{len(lost)} of {len(pairs)} images of {chosen.name} are not there; the first is {str(lost[0])!r}."
            )
        colours = tuple(voc_colour(i) for i in range(len(VOC)))
        super().__init__(pairs, VOC, root=folder, colours=colours, orientation=orientation, split=split)


def _files(names: list[str], folder: Path, usual: str) -> list[Path]:
    """The file of each name, with any extension; with the usual one if it does not exist."""
    lookup = Lookup(folder)
    return [folder / (lookup.find(f"{name}{usual}") or f"{name}{usual}") for name in names]


DATASETS = {"voc_seg": VOCSegmentation}
