"""Images sorted into folders: ROOT/train/CLASS/... and ROOT/val/CLASS/..., the layout of ImageNet.

Class indices follow the sorted names of the class folders of train and val together. Images may lie in subfolders of
a class folder. All paths are stored in one byte string, so that a million images need no Python objects and workers
share the memory.
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from tetravit.data import imagenet
from tetravit.data.datasets.base import Dataset, DatasetInfo, Root, Split, check_split, keep_fraction
from tetravit.data.decode import decode
from tetravit.data.files import ENDINGS, images_below, is_junk_folder, lacking, same_name, some
from tetravit.data.listing import Listing, kept_listing
from tetravit.data.parts import PARTS, Part, Parts, find_part, part_folder
from tetravit.data.problems import Problems
from tetravit.data.storage import is_local, storage_of
from tetravit.data.text import read_lines
from tetravit.structures import Sample

LAYOUT = "ROOT/train/CLASS/IMAGE and ROOT/val/CLASS/IMAGE"
# Folders that lie beside one called images, and are no classes.
BESIDE = frozenset(("images", "labels", "masks", "annotations", "label", "mask", "labelmaps", "json", "xml"))


class ImageFolder(Dataset):
    """Images in a folder per class: ROOT/train/CLASS/IMAGE.

    Args:
        root: the folder that contains the splits.
        split: "train", "val" or "test".
        parts: locations of the splits, each one or more folders of class folders; None: below the root.
        channels: of the images; other than 1 or 3, arrays (.npy) count as images too.
        fraction: keep the first share of each class (by sorted path), in (0, 1]; applies to training images only.
        names: a text file of lines `FOLDER DISPLAY NAME`; None: the folder names.

    Raises:
        ValueError: if a folder is missing or contains no image, or there are fewer than two classes.
    """

    needs_root = True

    def __init__(
        self,
        root: Root,
        split: Split,
        *,
        parts: Parts | None = None,
        channels: int = 3,
        fraction: float = 1.0,
        names: str | Path | None = None,
    ) -> None:
        check_split(split, PARTS)
        root = None if root is None else os.fspath(root)
        parts = parts or Parts(root)
        self.roots = _folders(root, parts, split)
        self.folders = sorted(
            {same_name(name) for place in _all_folders(root, parts, split) for name in class_folders(place)}
        )
        if len(self.folders) < 2:
            there = f"only {self.folders[0]!r}" if self.folders else "none"
            cure = "" if self.folders else " Images without labels are data.name=unlabelled."
            raise ValueError(
                f"Classification needs two class folders or more in {self.roots[0]!r}; found {there}.{cure}"
            )
        _check_kind(self.folders, self.roots[0])
        self.class_names = (
            _read_names(Path(names), self.folders) if names is not None else tuple(self.folders)
        )
        self.num_classes = len(self.folders)
        self.channels, self.problems = channels, Problems()
        self._paths, self._ends, labels, self._places = _listed(
            self.roots, self.folders, self.problems, channels
        )
        kept = keep_fraction(labels, fraction)
        self._kept: np.ndarray | None = None
        if fraction != 1:
            kept = keep_fraction(labels, fraction)
            self._kept = kept if split == "train" and len(kept) < len(labels) else None
        self.labels: np.ndarray = labels if self._kept is None else labels[self._kept]  # (N,) int32

    @property
    def info(self) -> DatasetInfo:
        return replace(super().info, problems=tuple(self.problems.lines()))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Sample:
        path = self.path(index)
        return Sample(decode(path, layout="decoded", channels=self.channels), int(self.labels[index]), path)

    def key(self, index: int) -> str:
        """CLASS/.../IMAGE."""
        row = self._row(index)
        start = self._ends[row - 1] if row else 0
        return os.fsdecode(self._paths[start : self._ends[row]].tobytes())

    def path(self, index: int) -> str:
        place = self.roots[int(np.searchsorted(self._places, self._row(index), side="right"))]
        return storage_of(place).join(place, self.key(index))

    def _row(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return index if self._kept is None else int(self._kept[index])


class ImageNet(ImageFolder):
    """ImageNet-1k: an image folder of exactly 1,000 classes, named by WordNet ids."""

    def __init__(
        self,
        root: Root,
        split: Split,
        *,
        parts: Parts | None = None,
        channels: int = 3,
        fraction: float = 1.0,
        names: str | Path | None = None,
    ) -> None:
        super().__init__(root, split, parts=parts, channels=channels, fraction=fraction, names=names)
        if self.num_classes != 1000:
            raise ValueError(
                f"imagenet has 1000 classes; {self.roots[0]!r} has {self.num_classes}."
                " For other sets use data.name=image_folder."
            )
        if names is None:
            self.class_names = imagenet.readable(self.folders)


def class_folders(folder: str) -> list[str]:
    """Sorted names of the class folders in a folder; system folders are skipped.

    Raises:
        ValueError: if the folder is missing or cannot be listed.
    """
    try:
        return sorted(
            e.name for e in storage_of(folder).list(folder) if e.is_folder and not is_junk_folder(e.name)
        )
    except FileNotFoundError:
        raise ValueError(f"There is no folder {folder!r}.") from None
    except NotADirectoryError:
        raise ValueError(
            f"{folder!r} is a file; an image folder is read from folders. For a list use data.name=image_list."
        ) from None
    except OSError as error:
        raise ValueError(f"Cannot list {folder!r}: {(error.strerror or str(error)).lower()}.") from None


def _folders(root: str | None, parts: Parts, part: Part) -> tuple[str, ...]:
    """The folders of class folders of a split."""
    place = parts.place(part)
    if place.given:
        return place.given
    if root is None:
        raise ValueError(f"An image folder needs its root ({LAYOUT}).")
    if place.whole and storage_of(root).exists(root) and find_part(root, place.part) is None:
        return (root,)
    return (part_folder(root, place.part, LAYOUT),)


def _all_folders(root: str | None, parts: Parts, part: Part) -> list[str]:
    """The folders whose subfolders define the classes: those of the split, and of train and val if they exist."""
    folders = list(_folders(root, parts, part))
    for other in ("train", "val"):
        try:
            folders += _folders(root, parts, other)
        except ValueError:  # the other split does not exist
            continue
    return list(dict.fromkeys(folders))


def _check_kind(folders: Sequence[str], root: str) -> None:
    """Raises: ValueError if what would be classes are images and what belongs to them."""
    lowered = {name.lower() for name in folders}
    if "images" in lowered and lowered <= BESIDE:
        raise ValueError(
            f"The folders of {root!r} are {some(folders)}, images and their annotations, not classes;"
            " data.name=label_folder, yolo or coco reads them."
        )


def _listed(roots: Sequence[str], names: list[str], problems: Problems, channels: int) -> Listing:
    """The images below the roots, listed now, or cached while no folder has changed."""
    if not all(map(is_local, roots)):
        return _scan(roots, names, problems, channels)
    places = [os.path.abspath(root) for root in roots]
    return kept_listing(
        ["image_folder", places, names, channels, sorted(ENDINGS - lacking())],
        problems,
        lambda times, others: _scan(roots, names, others, channels, times),
    )


def _scan(
    roots: Sequence[str],
    names: list[str],
    problems: Problems,
    channels: int,
    times: dict[str, int] | None = None,
) -> Listing:
    """List the images below the roots. times: receives the folders and their modification times.

    Raises:
        ValueError: if a folder cannot be listed, or no file of a class can be read.
    """
    paths, ends, labels, places = bytearray(), list[int](), list[int](), list[int]()
    numbers = {name: i for i, name in enumerate(names)}
    for root in roots:
        if times is not None:
            times[root] = os.stat(root).st_mtime_ns
        labelled = sorted((numbers[same_name(name)], name) for name in class_folders(root))
        for label, name in labelled:
            folder, before, others = storage_of(root).join(root, name), len(ends), Problems()
            try:
                images = images_below(folder, others, channels=channels, times=times)
            except OSError as error:
                where = error.filename or folder
                raise ValueError(
                    f"Cannot list {where!r}: {(error.strerror or str(error)).lower()}."
                ) from None
            for path in images:
                paths += os.fsencode(f"{name}/{path}")
                ends.append(len(paths))
                labels.append(label)
            if len(ends) == before and others.counts:
                raise ValueError(f"The class folder {folder!r} holds no image: {'; '.join(others.lines())}.")
            problems.merge(others)
        places.append(len(ends))
    if not ends:
        raise ValueError(f"The class folders of {roots[0]!r} hold no image.")
    return Listing(
        np.frombuffer(bytes(paths), dtype=np.uint8),
        np.array(ends, dtype=np.int64),
        np.array(labels, dtype=np.int32),
        np.array(places, dtype=np.int64),
    )


def _read_names(file: Path, folders: list[str]) -> tuple[str, ...]:
    names = dict(line.split(maxsplit=1) for line in read_lines(file) if len(line.split()) > 1)
    missing = [folder for folder in folders if folder not in names]
    if missing:
        raise ValueError(f"The class names in {str(file)!r} lack {some(missing)}.")
    return tuple(names[folder].strip() for folder in folders)


DATASETS = {"image_folder": ImageFolder, "imagenet": ImageNet}
