"""Pairs of images and label maps: base of the file-based segmentation sets.

Shapes: Hi Wi the upright image in pixels.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tetravit.data.checks import LabelCounts
from tetravit.data.colours import labels_of_colours
from tetravit.data.datasets.base import Dataset, DatasetInfo
from tetravit.data.decode import BadImage, decode, file_bytes, opened, orientation
from tetravit.data.label_files import SUFFIXES, Pair, check_pairs, pairs_of
from tetravit.data.palettes import Colour
from tetravit.data.problems import Problems
from tetravit.data.upright import (
    CURE,
    QUARTER,
    Orientation,
    check_orientation,
    headers,
    stored_size,
    turned_error,
    turned_map,
)
from tetravit.structures import Sample

__all__ = [
    "IGNORE",
    "SUFFIXES",
    "UNKNOWN",
    "LabelMaps",
    "Listed",
    "Pair",
    "Shifted",
    "pairs_of",
    "read_labels",
]
LOG = logging.getLogger("tetravit.data")
IGNORE = 255  # label of ignored pixels
UNKNOWN = 254  # label of values that a table does not list
VOID = (224, 224, 192)  # border colour around objects in Pascal VOC
SAMPLE = 24  # label maps read at construction
TURNED = 1000  # image headers read at construction


class LabelMaps(Dataset):
    """Image and label map files as samples; targets are label maps (Hi, Wi), uint8 for 8-bit files, else int32.

    Images are rotated upright by their EXIF orientation. A label map whose size fits only the upright image belongs
    to the upright pixels; otherwise `orientation` decides.

    Args:
        pairs: image and label map of each sample.
        class_names: in label order.
        root: base path for file names in messages.
        convert: raw values -> labels; None: they are labels.
        colours: of the classes, for colour-coded label maps; None: pixels are labels.
        orientation: whether label maps of rotated images fit the "upright" or the "stored" pixels; None: such images
            are an error if their size is ambiguous.
        split: for "train", label maps unfit for training are an error.
        problems: counts of files left out so far.

    Some label maps, evenly spaced over the set, are read at construction and compared with the classes.

    Raises:
        ValueError: if an image has no label map, shares it with another, or label maps do not match the classes.
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
        colours: Sequence[Colour] | None = None,
        orientation: Orientation | None = None,
        split: str = "val",
        problems: Problems | None = None,
    ) -> None:
        check_pairs(pairs)
        check_orientation(orientation)
        self.pairs, self.root, self.convert, self.colours = list(pairs), root, convert, colours
        self.orientation = orientation
        self.class_names = tuple(class_names)
        self.num_classes = len(self.class_names)
        self.problems = problems or Problems()
        self._check_turned()
        self.label_counts = self._sampled()
        self.notes = self.label_counts.findings(self.class_names, refuse=split == "train")
        if split != "train":  # the plan of a run shows those of the training split
            for line in (*self.problems.lines(), *self.notes):
                LOG.warning("%s: %s.", root, line)

    @property
    def info(self) -> DatasetInfo:
        whole = self.label_counts.maps == len(self)
        return replace(
            super().info,
            problems=(*self.problems.lines(), *self.notes),
            counts=self.label_counts.pixels[: self.num_classes].copy() if whole else None,
        )

    def key(self, index: int) -> str:
        return self._name(self.pairs[index][0])

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        image_file, label_file = self.pairs[index]
        labels, data = self._labels(index), file_bytes(image_file)
        return self._sample(str(image_file), data, labels, str(label_file), self._name(image_file))

    def path(self, index: int) -> str:
        return str(self.pairs[index][0])

    def _labels(self, index: int) -> Tensor:
        """A label map as stored."""
        return read_labels(self.pairs[index][1], self.colours)

    def _sample(self, name: str, data: bytes, labels: Tensor, label_file: str, shown: str) -> Sample:
        """An image and its label map, upright and of equal size. The names are for messages."""
        image = decode(data, name=name)
        size, have = (image.shape[1], image.shape[2]), (labels.shape[0], labels.shape[1])
        turn = orientation(data, name)
        if turn != 1 and self.orientation == "stored" and have == stored_size(turn, *size):
            labels = torch.from_numpy(turned_map(labels.numpy(), turn))
        elif size != have:
            exif = f" (EXIF orientation {turn} turns it)" if turn != 1 else ""
            raise BadImage(
                label_file, f"it is {have[1]} x {have[0]} pixels, its image {size[1]} x {size[0]}{exif}"
            )
        elif turn != 1 and self.orientation is None and (turn < QUARTER or size[0] == size[1]):
            raise BadImage(
                name,
                f"EXIF orientation {turn} turns it, and its label map may be turned or not; {CURE}",
            )
        labels = labels if self.convert is None else self.convert(labels)
        return Sample(image, labels, shown)

    def _name(self, file: Path) -> str:
        return file.relative_to(self.root).as_posix() if file.is_relative_to(self.root) else str(file)

    def _check_turned(self) -> None:
        """Raises: ValueError if images are rotated and neither an option nor the label map sizes decide the
        orientation."""
        if self.orientation is not None:
            return
        pairs = self.pairs[:: max(1, -(-len(self.pairs) // TURNED))]
        read = headers("", [str(image) for image, _ in pairs])
        turned = np.flatnonzero(read[:, 2] > 1)
        maps = headers("", [str(pairs[i][1]) for i in turned])
        decided = [
            turn >= QUARTER and height != width and (height, width) == tuple(of)
            for (height, width, turn), of in zip(read[turned].tolist(), maps[:, :2].tolist(), strict=True)
        ]
        unclear = [int(i) for i, known in zip(turned, decided, strict=True) if not known]
        if unclear:
            first = unclear[0]
            image = self._name(pairs[first][0])
            raise turned_error(image, int(read[first, 2]), len(unclear), len(pairs), "label maps")

    def _sampled(self) -> LabelCounts:
        """Raw values of some label maps. Damaged files are skipped, unless all are damaged.

        Raises:
            BadImage: if all are damaged, or none has the size of its image.
        """
        counts, errors, unlike = LabelCounts(self.num_classes), list[BadImage](), list[BadImage]()
        indices = range(0, len(self), max(1, -(-len(self) // SAMPLE)))
        heads = headers("", [str(self.pairs[i][0]) for i in indices] if self.pairs else [])
        for place, index in enumerate(indices):
            try:
                labels = self._labels(index)
            except BadImage as error:
                errors.append(error)
                continue
            if self.pairs:
                unlike += _unlike(str(self.pairs[index][1]), labels, *heads[place].tolist())
            stored, labels = labels, labels if self.convert is None else self.convert(labels)
            counts.add(labels.numpy(), stored.numpy(), self.key(index))
        if errors and not counts.maps:
            raise errors[0]
        if len(unlike) == counts.maps > 1:
            more = f"; the same holds for all {counts.maps} that were read first"
            raise BadImage(unlike[0].name, f"{unlike[0].cause}{more}")
        return counts


def _unlike(name: str, labels: Tensor, height: int, width: int, turn: int) -> list[BadImage]:
    """The error of a label map (H, W) whose size is that of neither the upright nor the stored image; 0: unknown."""
    have = (labels.shape[0], labels.shape[1])
    if not height or have in ((height, width), stored_size(turn, height, width)):
        return []
    return [BadImage(name, f"it is {have[1]} x {have[0]} pixels, its image {width} x {height}")]


def read_labels(file: Path | bytes, colours: Sequence[Colour] | None = None, name: str = "") -> Tensor:
    """Decode a label map from a file or its bytes, values as stored (Hi, Wi): uint8, or int32 above 8 bits.

    In palette images the indices are the labels, not the colours; three equal channels count as one.

    colours: one per class; the label of a pixel is the index of its colour.

    Raises:
        BadImage: if the file cannot be read, or contains a colour of no class.
    """
    name = name or str(file)
    with opened(file if isinstance(file, bytes) else file_bytes(file), name) as picture:
        picture.load()
        mode, array = picture.mode, np.asarray(picture)
        painted = (
            np.asarray(picture.convert("RGB")) if colours is not None and mode in ("L", "P", "1") else None
        )
    if mode in ("LA", "PA"):
        mode, array = "L", array[..., 0]
    if mode in ("L", "P", "1"):
        if painted is not None and colours is not None:
            by_colour = labels_of_colours(painted, colours, UNKNOWN)
            if (by_colour != UNKNOWN).all():
                return torch.from_numpy(by_colour)
        return torch.from_numpy(array.astype(np.uint8))
    if mode.startswith("I"):
        return torch.from_numpy(array.astype(np.int32))
    if mode == "F" and (array == np.rint(array)).all():
        return torch.from_numpy(array.astype(np.int32))
    if mode not in ("RGB", "RGBA"):
        raise BadImage(
            name, f"its pixels are {mode}; a label map has one number per pixel, that of its class"
        )
    pixels = array[..., :3]
    if colours is not None:
        return torch.from_numpy(_painted(pixels, colours, name))
    if (pixels == pixels[..., :1]).all():
        return torch.from_numpy(np.ascontiguousarray(pixels[..., 0]))
    raise BadImage(
        name,
        f"it holds colours ({mode}); a label map has one number per pixel, that of its class, unless"
        " data.options.colours, or a line NAME R G B for each class in classes.txt, says what each colour means",
    )


def _painted(pixels: np.ndarray, colours: Sequence[Colour], name: str) -> np.ndarray:
    labels = labels_of_colours(pixels, colours, UNKNOWN)
    strange = (labels == UNKNOWN) & ((len(colours) <= UNKNOWN) | (pixels != colours[-1]).any(axis=-1))
    void = strange & (pixels == VOID).all(axis=-1)
    labels[void] = IGNORE
    strange &= ~void
    if strange.any():
        colour = tuple(int(v) for v in pixels[strange][0])
        raise BadImage(
            name,
            f"{int(strange.sum()):,} of its pixels have a colour that no class has, the first {colour}; the table of"
            " colours names every one",
        )
    return labels


class Shifted:
    """Raw values -> labels, for classes that start at `first`; smaller values and 255 become `IGNORE`."""

    def __init__(self, first: int) -> None:
        self.first = first

    def __call__(self, labels: Tensor) -> Tensor:
        if labels.dtype == torch.uint8:
            table = torch.arange(256) - self.first
            table[: self.first] = IGNORE
            table[IGNORE] = IGNORE
            return table.to(torch.uint8)[labels.long()]
        shifted = torch.where(
            labels > IGNORE, labels, labels - self.first
        )  # values above 255 never become `IGNORE`
        return shifted.masked_fill((shifted < 0) | (labels == IGNORE), IGNORE)


class Listed:
    """Raw values -> labels, for classes with arbitrary values; 255 is ignored unless it is listed.

    values: raw values of the classes, in class order.
    """

    def __init__(self, values: Sequence[int]) -> None:
        self.values = tuple(values)

    def __call__(self, labels: Tensor) -> Tensor:
        converted = torch.full(labels.shape, UNKNOWN, dtype=torch.uint8)
        converted[labels == IGNORE] = IGNORE
        for label, value in enumerate(self.values):
            converted[labels == value] = label
        return converted
