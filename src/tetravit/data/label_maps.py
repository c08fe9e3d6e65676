"""Images beside label maps: what every data set of files shares.

Shapes: Hi Wi the image in pixels.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tetravit.data.datasets.base import Dataset
from tetravit.data.decode import BadImage, decode, file_bytes, opened, orientation
from tetravit.structures import Sample

IGNORE = 255  # label of pixels that carry no class
UNKNOWN = 254  # what a table gives for a number that it does not list
MIRRORED = (2, 3, 4)  # EXIF orientations that leave height and width as they are
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")

Pair = tuple[Path, Path]  # image, label map


class LabelMaps(Dataset):
    """Pairs of files as samples; targets are label maps (Hi, Wi), uint8 where the file has 8 bits, else int32.

    Images are turned upright as their EXIF data says, label maps are as stored: one of the upright image's size
    belongs to it. Where the size cannot tell, the image is refused.

    Args:
        pairs: image and label map of each sample.
        class_names: in the order of the labels.
        root: what file names are given relative to in messages.
        convert: the numbers in a file -> labels; None: they are labels.

    Raises:
        ValueError: if an image lacks its label map, or shares it with another.
    """

    kind = "segment"
    needs_root = True

    def __init__(
        self,
        pairs: Sequence[Pair],
        class_names: Sequence[str],
        *,
        root: Path,
        convert: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        check_pairs(pairs)
        self.pairs, self.root, self.convert = list(pairs), root, convert
        self.class_names = tuple(class_names)
        self.num_classes = len(self.class_names)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        image_file, label_file = self.pairs[index]
        name, data = str(image_file), file_bytes(image_file)
        image, labels = decode(data, name=name), read_labels(label_file)
        (Hi, Wi), (h, w) = image.shape[1:], labels.shape
        if (Hi, Wi) != (h, w):
            raise BadImage(str(label_file), f"it is {w} x {h} pixels, its image {Wi} x {Hi}")
        turned = orientation(data, name)
        if turned in MIRRORED or (turned != 1 and Hi == Wi):
            raise BadImage(
                name,
                f"EXIF orientation {turned} turns it, and its label map may be turned or not; store it upright",
            )
        labels = labels if self.convert is None else self.convert(labels)
        return Sample(image, labels, image_file.relative_to(self.root).as_posix())


def read_labels(file: Path) -> Tensor:
    """A label map of a file, numbers as stored (Hi, Wi): uint8, or int32 where it has more than 8 bits.

    Of a picture with a palette the indices are the labels, not the colours.

    Raises:
        BadImage: if the file cannot be read, or holds colours.
    """
    name = str(file)
    with opened(file_bytes(file), name) as picture:
        picture.load()
        mode, array = picture.mode, np.asarray(picture)
    if mode in ("L", "P", "1"):
        return torch.from_numpy(array.astype(np.uint8))
    if mode.startswith("I"):
        return torch.from_numpy(array.astype(np.int32))
    raise BadImage(
        name, f"it holds colours ({mode}); a label map has one number per pixel, that of its class"
    )


def pairs_of(images: Path, labels: Path, *, suffix: str = ".png") -> list[Pair]:
    """Every image below a folder with the place of its label map, of the same name below another, in order.

    Raises:
        ValueError: if a folder is missing or empty.
    """
    for folder in (images, labels):
        if not folder.is_dir():
            raise ValueError(f"There is no folder {str(folder)!r}.")
    found = sorted(p for p in images.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not found:
        raise ValueError(f"There are no images in {str(images)!r}.")
    if not any(labels.rglob(f"*{suffix}")):
        raise ValueError(f"There are no label maps (*{suffix}) in {str(labels)!r}.")
    return [(p, labels / p.relative_to(images).with_suffix(suffix)) for p in found]


def check_pairs(pairs: Sequence[Pair]) -> None:
    """Raises: ValueError if an image lacks its label map, or shares it with another."""
    lacking = [label for _, label in pairs if not label.is_file()]
    if lacking:
        raise ValueError(
            f"{len(lacking)} of {len(pairs)} images lack their label map; the first is {str(lacking[0])!r}."
        )
    owners: dict[Path, Path] = {}
    for image, label in pairs:
        if (other := owners.setdefault(label, image)) is not image:
            raise ValueError(
                f"{str(other)!r} and {str(image)!r} share the label map {label.name!r}; rename one of them, or"
                " remove it."
            )


class Shifted:
    """Numbers in a file -> labels, where classes count from `first`; what is below it, and 255, becomes `IGNORE`."""

    def __init__(self, first: int) -> None:
        self.first = first

    def __call__(self, labels: Tensor) -> Tensor:
        if labels.dtype == torch.uint8:
            table = torch.arange(256) - self.first
            table[: self.first] = IGNORE
            table[IGNORE] = IGNORE
            return table.to(torch.uint8)[labels.long()]
        shifted = torch.where(labels > IGNORE, labels, labels - self.first)  # none of them becomes `IGNORE`
        return shifted.masked_fill((shifted < 0) | (labels == IGNORE), IGNORE)
