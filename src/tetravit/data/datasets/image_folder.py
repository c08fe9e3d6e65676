"""Images sorted into folders: ROOT/train/CLASS/... and ROOT/val/CLASS/..., the layout of ImageNet.

Class numbers follow the sorted folder names. Images may lie deeper inside a class folder; names that begin
with a dot are passed over. All paths live in one byte string, so that a million images cost no Python
objects and workers share the memory.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tetravit.data import imagenet
from tetravit.data.datasets.base import Dataset, Root, Split, check_split, keep_fraction
from tetravit.data.decode import decode
from tetravit.structures import Sample

# fmt: off
EXTENSIONS = frozenset((
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".jp2", ".tga", ".avif",
))
# fmt: on
LAYOUT = "ROOT/train/CLASS/IMAGE and ROOT/val/CLASS/IMAGE"


class ImageFolder(Dataset):
    """Labelled images of one split.

    Args:
        root: the folder that holds `train` and `val`.
        split: "train" or "val".
        fraction: keep the first share of each class (by sorted path), in (0, 1]; validation is always whole.
        names: a text file of lines `FOLDER what people call it`; None: the folders' names serve.

    Raises:
        ValueError: if a folder is missing or empty, there are fewer than two classes, or the class folders
        of train
            and val differ.
    """

    needs_root = True

    def __init__(
        self, root: Root, split: Split, *, fraction: float = 1.0, names: str | Path | None = None
    ) -> None:
        check_split(split)
        if root is None:
            raise ValueError(f"An image folder needs its root ({LAYOUT}).")
        self.root = Path(root)
        self.folder = self.root / split
        self.folders = class_folders(self.root, split)
        _check_agreement(self.root, split, self.folders)
        self.class_names = (
            _read_names(Path(names), self.folders) if names is not None else tuple(self.folders)
        )
        self.num_classes = len(self.folders)
        self._paths, self._ends, labels = _scan(self.folder, self.folders)
        kept = keep_fraction(labels, fraction)
        self._kept = kept if split == "train" and len(kept) < len(labels) else None
        self.labels: np.ndarray = labels if self._kept is None else labels[self._kept]  # (N,) int32

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Sample:
        path = self.path(index)
        return Sample(decode(path, layout="decoded"), int(self.labels[index]), path)

    def path(self, index: int) -> str:
        row = self._row(index)
        start = self._ends[row - 1] if row else 0
        return os.path.join(self.folder, os.fsdecode(self._paths[start : self._ends[row]]))

    def _row(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return index if self._kept is None else int(self._kept[index])


class ImageNet(ImageFolder):
    """ImageNet-1k: an image folder of exactly 1,000 classes, whose folders are named by WordNet numbers."""

    def __init__(
        self, root: Root, split: Split, *, fraction: float = 1.0, names: str | Path | None = None
    ) -> None:
        super().__init__(root, split, fraction=fraction, names=names)
        if self.num_classes != 1000:
            raise ValueError(
                f"imagenet has 1000 classes; {str(self.folder)!r} has {self.num_classes}."
                " For other sets use data.name=image_folder."
            )
        if names is None:
            self.class_names = imagenet.readable(self.folders)


def class_folders(root: Path, split: str) -> list[str]:
    """Sorted names of the class folders of a split.

    Raises:
        ValueError: if the root or the split is missing or cannot be read, or has fewer than two classes.
    """
    if not root.is_dir():
        raise ValueError(f"There is no folder {str(root)!r}.")
    folder = root / split
    if not folder.is_dir():
        raise ValueError(f"There is no folder {split!r} in {str(root)!r}; an image folder is {LAYOUT}.")
    try:
        with os.scandir(folder) as entries:
            names = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    except OSError as error:
        raise ValueError(f"Cannot list {str(folder)!r}: {(error.strerror or str(error)).lower()}.") from None
    if len(names) < 2:
        found = f"only {names[0]!r}" if names else "none"
        raise ValueError(f"Classification needs two class folders or more in {str(folder)!r}; found {found}.")
    return names


def _check_agreement(root: Path, split: str, names: list[str]) -> None:
    """Raises: ValueError if the other split exists with other class folders."""
    other = "val" if split == "train" else "train"
    if not (root / other).is_dir():
        return
    there = set(class_folders(root, other))
    only_here, only_there = sorted(set(names) - there), sorted(there - set(names))
    if only_here or only_there:
        parts = [f"only in {s}: {_some(n)}" for s, n in ((split, only_here), (other, only_there)) if n]
        raise ValueError(
            f"train and val of {str(root)!r} hold different classes; {'; '.join(sorted(parts))}."
        )


def _some(names: list[str], limit: int = 5) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(map(repr, names[:limit])) + more


def _scan(folder: Path, names: list[str]) -> tuple[bytes, np.ndarray, np.ndarray]:
    """Paths below `folder` end to end, where each ends, and its class."""
    paths, ends, labels = bytearray(), list[int](), list[int]()
    for label, name in enumerate(names):
        before = len(ends)
        try:
            for path in sorted(_images(folder / name, name, frozenset())):
                paths += os.fsencode(path)
                ends.append(len(paths))
                labels.append(label)
        except OSError as error:
            where = error.filename or str(folder / name)
            raise ValueError(f"Cannot list {where!r}: {(error.strerror or str(error)).lower()}.") from None
        if len(ends) == before:
            raise ValueError(f"The class folder {str(folder / name)!r} holds no image.")
    return bytes(paths), np.array(ends, dtype=np.int64), np.array(labels, dtype=np.int32)


def _images(folder: Path, prefix: str, above: frozenset[tuple[int, int]]) -> Iterator[str]:
    """Image paths below a class folder, as `prefix/...`; links that lead back up are not followed."""
    status = os.stat(folder)
    here = above | {(status.st_dev, status.st_ino)}
    if len(here) == len(above):
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = f"{prefix}/{entry.name}"
            if os.path.splitext(entry.name)[1].lower() in EXTENSIONS:
                yield path
            elif entry.is_dir():
                yield from _images(folder / entry.name, path, here)


def _read_names(file: Path, folders: list[str]) -> tuple[str, ...]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"Cannot read the class names in {str(file)!r}: {error}.") from None
    names = dict(line.split(maxsplit=1) for line in lines if len(line.split()) > 1)
    missing = [folder for folder in folders if folder not in names]
    if missing:
        raise ValueError(f"The class names in {str(file)!r} lack {_some(missing)}.")
    return tuple(names[folder].strip() for folder in folders)


DATASETS = {"image_folder": ImageFolder, "imagenet": ImageNet}
