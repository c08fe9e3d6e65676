"""ImageNet-1k test sets: V2, -A, -R, Sketch, and ReaL labels, each in the layout of its authors' archive.

They are for evaluation only; their only split is `val`. `classes` selects the evaluated logits of a 1000-class model:
for -A and -R, which have 200 classes, the argmax is over these 200, as in their papers.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tetravit.data import imagenet
from tetravit.data.datasets.base import Dataset, DatasetInfo, Root, Split, check_split
from tetravit.data.decode import decode
from tetravit.data.files import images_below
from tetravit.structures import Sample


class _TestSet(Dataset):
    """Images of a subset of ImageNet's classes.

    paths, targets: per image; a target is an index into `classes`. several: a target is a tuple of classes, each
    correct.
    """

    needs_root = True
    several = False

    def __init__(self, classes: Sequence[int], paths: Sequence[Path], targets: Sequence[Any]) -> None:
        self.classes = tuple(classes)
        names = imagenet.class_names()
        self.class_names = tuple(names[i] for i in self.classes)
        self.num_classes = len(self.classes)
        self.paths, self.targets = [str(path) for path in paths], list(targets)

    @property
    def info(self) -> DatasetInfo:
        return replace(super().info, classes=self.classes, several=self.several)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        path = self.paths[index]
        return Sample(decode(path, layout="decoded", channels=self.channels), self.targets[index], path)


class _Folders(_TestSet):
    """ROOT/CLASS/IMAGE with exactly `count` class folders."""

    name: str
    count: int
    named: str  # naming scheme of the folders, for messages

    def __init__(self, root: Root, split: Split) -> None:
        folder = _only_val(self.name, root, split)
        known = {name: i for i, name in enumerate(self.folder_names())}
        class_folders = sorted((known[p.name], p) for p in folder.iterdir() if p.name in known and p.is_dir())
        if len(class_folders) != self.count:
            raise ValueError(
                f"{self.name} has {self.count} class folders, {self.named}; {str(folder)!r} has {len(class_folders)}."
            )
        images = [(label, path) for label, (_, place) in enumerate(class_folders) for path in _images(place)]
        super().__init__(
            [i for i, _ in class_folders], [path for _, path in images], [label for label, _ in images]
        )

    @staticmethod
    def folder_names() -> Sequence[str]:
        """Folder names of all 1000 classes, in the order of the logits."""
        return imagenet.wordnet_ids()


class ImageNetV2(_Folders):
    """ImageNet-V2: 10,000 new photographs in the folders 0 to 999 (Recht et al. 2019, arXiv:1902.10811).

    Published results usually refer to the "matched frequency" set.
    """

    name, count, named = "imagenet_v2", 1000, "0 to 999"

    @staticmethod
    def folder_names() -> Sequence[str]:
        return [str(i) for i in range(1000)]


class ImageNetA(_Folders):
    """ImageNet-A: 7,500 photographs, 200 classes, misclassified by ResNet-50 (Hendrycks et al., arXiv:1907.07174)."""

    name, count, named = "imagenet_a", 200, "WordNet numbers"


class ImageNetR(_Folders):
    """ImageNet-R: 30,000 drawings, toys and other renditions of 200 classes (Hendrycks et al., arXiv:2006.16241)."""

    name, count, named = "imagenet_r", 200, "WordNet numbers"


class ImageNetSketch(_Folders):
    """ImageNet-Sketch: 50,889 sketches of the 1000 classes (Wang et al. 2019, arXiv:1905.13549)."""

    name, count, named = "imagenet_sketch", 1000, "WordNet numbers"


class ImageNetReal(_TestSet):
    """ImageNet's validation images with ReaL labels (Beyer et al. 2020, arXiv:2006.07159).

    An image may have several labels, each correct; images without any are left out.

    Args:
        root: the folder that contains `val`, with or without class folders; images have their original names
            (ILSVRC2012_val_00000001.JPEG).
        split: "val".
        labels: the authors' real.json, a list of lists of classes, in image order.

    Raises:
        ValueError: if images or labels are missing, or do not match.
    """

    several = True

    def __init__(self, root: Root, split: Split, *, labels: str | Path | None = None) -> None:
        folder = _only_val("imagenet_real", root, split)
        if labels is None:
            raise ValueError(
                "imagenet_real needs its labels: data.options.labels=FILE, the authors' real.json."
            )
        folder = folder / "val" if (folder / "val").is_dir() else folder
        known = _read_labels(Path(labels))
        kept = []
        for path in _images(folder):
            number = re.search(r"_val_(\d{8})$", path.stem)
            if number is None or not 1 <= int(number[1]) <= len(known):
                raise ValueError(
                    f"imagenet_real has images ILSVRC2012_val_00000001.JPEG to {len(known):08d}; got {str(path)!r}."
                )
            kept.append((int(number[1]), path))
        kept = sorted((number, path) for number, path in kept if known[number - 1])
        if not kept:
            raise ValueError(f"There are no images with labels in {str(folder)!r}.")
        super().__init__(
            range(1000), [path for _, path in kept], [tuple(known[number - 1]) for number, _ in kept]
        )


def _only_val(name: str, root: Root, split: Split) -> Path:
    """The root, checked. Raises: ValueError if it is missing, or for another split."""
    check_split(split)
    if split != "val":
        raise ValueError(f"{name} is a test set: its split is val; got {split!r}.")
    if root is None:
        raise ValueError(f"{name} needs its root, the folder that its archive unpacks to.")
    if not Path(root).is_dir():
        raise ValueError(f"There is no folder {str(root)!r}.")
    return Path(root)


def _images(folder: Path) -> list[Path]:
    """Image files below a folder, in order. Raises: ValueError if there are none."""
    paths = sorted(folder / name for name in images_below(str(folder)))
    if not paths:
        raise ValueError(f"There are no images in the folder {str(folder)!r}.")
    return paths


def _read_labels(file: Path) -> list[list[int]]:
    try:
        known: list[list[int]] = json.loads(file.read_text(encoding="utf-8"))
        fine = all(isinstance(i, int) and 0 <= i < 1000 for several in known for i in several)
    except OSError as error:
        raise ValueError(f"Cannot read the labels in {str(file)!r}: {error.strerror}.") from None
    except (ValueError, TypeError):
        fine = False
    if not fine:
        raise ValueError(f"{str(file)!r} does not hold ReaL's labels: a list of lists of classes 0 to 999.")
    return known


DATASETS = {
    "imagenet_v2": ImageNetV2,
    "imagenet_a": ImageNetA,
    "imagenet_r": ImageNetR,
    "imagenet_sketch": ImageNetSketch,
    "imagenet_real": ImageNetReal,
}
