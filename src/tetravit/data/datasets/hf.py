"""Data sets of the package `datasets` (extra `hf`): a folder from `save_to_disk`, or Parquet files, read in place.

ROOT is such a folder, with several splits (`DatasetDict`) or one; or it contains `train*.parquet`, `val*.parquet`.
Rows are read by index from memory-mapped Arrow files. Nothing is downloaded.
"""

import importlib
import os
from typing import Any

import numpy as np

from tetravit.data.datasets.base import Dataset, Root, Split, check_split, local_root
from tetravit.data.decode import decode
from tetravit.data.files import some
from tetravit.data.parts import NAMES, PARTS
from tetravit.structures import Sample

IMAGES = ("image", "img", "jpg", "png", "pixel_values", "picture")
LABELS = ("label", "labels", "fine_label", "class", "cls", "target", "category")


class HuggingFace(Dataset):
    """Images with one class each, of Hugging Face's datasets: saved to disk, or *.parquet.

    Args:
        root: the folder.
        split: "train", "val" or "test"; the synonyms "validation", "valid" and "dev" are recognised.
        channels: of the images.
        image, label: column names; "": the usual ones.

    Raises:
        ValueError: if the folder, split or column does not exist, or the package is not installed.
    """

    needs_root = True

    def __init__(
        self, root: Root, split: Split, *, channels: int = 3, image: str = "", label: str = ""
    ) -> None:
        check_split(split, PARTS)
        self.channels = channels
        self.folder = str(local_root("hf", root))
        table = _part(self.folder, split)
        package = _package()
        self.image = _column(table.column_names, image, IMAGES, "image", self.folder)
        name = _column(table.column_names, label, LABELS, "label", self.folder)
        self.split = split
        feature = table.features[name]
        values = np.asarray(table.with_format("numpy", columns=[name])[name][:])
        if hasattr(feature, "names"):
            self.class_names: tuple[str, ...] = tuple(feature.names)
            labels = values
        else:
            known = sorted(set(values.tolist()))
            self.class_names = tuple(map(str, known))
            labels = np.searchsorted(np.array(known), values)
        self.labels: np.ndarray = labels.astype(np.int32)
        self.num_classes = len(self.class_names)
        if isinstance(table.features[self.image], package.Image):
            table = table.cast_column(self.image, package.Image(decode=False))
        self.table = table.select_columns([self.image])

    def key(self, index: int) -> str:
        return f"{self.split}/{index}"

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        value = self.table[int(index)][self.image]
        name = f"{self.folder}/{self.key(index)}"
        data = value if isinstance(value, bytes) else value.get("bytes")
        source = data if data is not None else os.path.join(self.folder, str(value["path"]))
        image = decode(source, name=name, layout="decoded", channels=self.channels)
        return Sample(image, int(self.labels[index]), name)


def _package() -> Any:
    try:
        return importlib.import_module("datasets")
    except ImportError:
        raise ValueError(
            "The data set 'hf' needs the package datasets: pip install 'tetravit[hf]'."
        ) from None


def _part(folder: str, split: Split) -> Any:
    """The rows of a split."""
    package = _package()
    if not os.path.isdir(folder):
        raise ValueError(f"There is no folder {folder!r}.")
    parquet = sorted(
        name
        for name in os.listdir(folder)
        if name.endswith(".parquet") and name.lower().startswith(NAMES[split])
    )
    if parquet:
        files = [os.path.join(folder, name) for name in parquet]
        return package.Dataset.from_parquet(files)
    try:
        loaded = package.load_from_disk(folder)
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(f"{folder!r} holds no data set of Hugging Face datasets: {error}.") from None
    if not isinstance(loaded, package.DatasetDict):
        if split == "train":
            return loaded
        raise ValueError(f"The data set in {folder!r} has no parts; data.split=0.1 divides it.")
    name = next((name for name in NAMES[split] if name in loaded), None)
    if name is None:
        raise ValueError(f"The data set in {folder!r} has no part {split!r}; it has {some(loaded)}.")
    return loaded[name]


def _column(columns: list[str], name: str, usual: tuple[str, ...], option: str, folder: str) -> str:
    match = name if name in columns else next((n for n in usual if n in columns and not name), None)
    if match is None:
        raise ValueError(
            f"The data set in {folder!r} has the columns {some(columns, 12)}; data.options.{option} names the one of"
            f" the {option}s."
        )
    return match


DATASETS = {"hf": HuggingFace}
