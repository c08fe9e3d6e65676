"""Tar shards in the layout of WebDataset, with random access: `tetravit data pack` and `tetravit data index`.

`data.name = "shards"` is enough: the variant for the kind of shards in data.root is selected. Shards of a remote
storage (https://..., s3://...) are read by ranges, or cached as whole shards in `cache`, a local folder.
"""

import io
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import Tensor

from tetravit.data.coco_layout import Source
from tetravit.data.datasets.base import Dataset, DatasetInfo, Root, Split, check_split
from tetravit.data.decode import decode
from tetravit.data.label_maps import IGNORE, LabelMaps, read_labels
from tetravit.data.objects import Empty, Masks, ObjectSet, check_options
from tetravit.data.parts import PARTS
from tetravit.data.problems import Problems
from tetravit.data.shards.cache import ShardCache
from tetravit.data.shards.index import NAMES
from tetravit.data.shards.source import ShardSource
from tetravit.data.storage import is_local
from tetravit.data.upright import Orientation, check_orientation, header
from tetravit.structures import DataKind, Sample

GB = 10**9


def open_shards(root: Root, split: Split, kind: DataKind, cache: str, cache_gb: float) -> ShardSource:
    """The shards of a split.

    Raises:
        ValueError: if there are none, or they are of another kind.
    """
    check_split(split, PARTS)
    if root is None:
        raise ValueError("The data set 'shards' needs its root, the folder of shards.json.")
    if cache_gb <= 0:
        raise ValueError(f"cache_gb is above 0; got {cache_gb!r}.")
    kept = ShardCache(os.path.expanduser(cache), int(cache_gb * GB)) if cache else None
    source = ShardSource(os.fspath(root), split, cache=kept)
    if source.meta.kind != kind:
        right = NAMES[source.meta.kind]
        raise ValueError(
            f"The shards in {os.fspath(root)!r} are to {source.meta.kind}: data.name={right} reads them."
        )
    return source


class Shards(Dataset):
    """Images with one class each, in tar files (WebDataset).

    Args:
        root: the folder of shards.json, local or remote.
        split: "train", "val" or "test".
        channels: of the images.
        cache: a local folder for whole shards of a remote storage; "": read ranges.
        cache_gb: maximum size of the cache, in GB.

    Raises:
        ValueError: if there are no shards, the split is missing, or the shards are of another kind.
    """

    needs_root = True

    def __init__(
        self, root: Root, split: Split, *, channels: int = 3, cache: str = "", cache_gb: float = 100.0
    ) -> None:
        self.source = open_shards(root, split, self.kind, cache, cache_gb)
        self.channels = channels
        self.class_names = self.source.meta.class_names
        self.num_classes = len(self.class_names)

    @property
    def labels(self) -> np.ndarray | None:  # type: ignore[override]
        labels: np.ndarray = self.source.rows["label"]
        return labels

    @property
    def info(self) -> DatasetInfo:
        return replace(super().info, shards=self.source.counts)

    def key(self, index: int) -> str:
        return self.source.name(index)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        name, data = self.source.read(index)
        image = decode(data, name=name, layout="decoded", channels=self.channels)
        return Sample(image, None if self.labels is None else int(self.labels[index]), name)


class UnlabelledShards(Shards):
    """Images without labels; see `Shards`."""

    kind = "unlabelled"

    @property
    def labels(self) -> np.ndarray | None:  # type: ignore[override]
        return None


class LabelMapShards(LabelMaps):
    """Images with label maps, KEY.seg.png: classes from 0; 255: ignored.

    Args:
        root, split, cache, cache_gb: see `Shards`.
        orientation: whether label maps of images with an EXIF rotation fit the "upright" or the "stored" pixels.
    """

    def __init__(
        self,
        root: Root,
        split: Split,
        *,
        cache: str = "",
        cache_gb: float = 100.0,
        orientation: Orientation | None = None,
    ) -> None:
        check_orientation(orientation)
        self.source = open_shards(root, split, "segment", cache, cache_gb)
        self.pairs, self.convert, self.colours, self.orientation = [], None, None, orientation
        self.class_names, self.problems = self.source.meta.class_names, Problems()
        self.num_classes = len(self.class_names) or IGNORE
        self.label_counts = self._sampled()
        if not self.class_names:  # foreign shards without classes.txt
            largest = int(np.flatnonzero(self.label_counts.pixels[:IGNORE]).max(initial=0))
            self.class_names = tuple(map(str, range(largest + 1)))
            self.num_classes = self.label_counts.num_classes = len(self.class_names)
        self.notes = self.label_counts.findings(self.class_names, refuse=split == "train")

    @property
    def info(self) -> DatasetInfo:
        return replace(super().info, shards=self.source.counts)

    def key(self, index: int) -> str:
        return self.source.name(index)

    def path(self, index: int) -> str:
        raise ValueError("The images of shards are no files of their own.")

    def _labels(self, index: int) -> Tensor:
        return read_labels(self.source.read_target(index), name=f"{self.source.name(index)} (label map)")

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        name, data = self.source.read(index)
        labels = read_labels(self.source.read_target(index), name=f"{name} (label map)")
        return self._sample(name, data, labels, f"{name} (label map)", name)


class ObjectShards(ObjectSet):
    """Images with objects, annotated by COCO JSON beside the shards.

    Args:
        root, split, cache, cache_gb: see `Shards`.
        empty, masks, orientation: see the data set `coco`.
    """

    def __init__(
        self,
        root: Root,
        split: Split,
        *,
        cache: str = "",
        cache_gb: float = 100.0,
        empty: Empty = "drop",
        masks: Masks = "read",
        orientation: Orientation | None = None,
    ) -> None:
        from tetravit.data.shards.objects import read_objects

        check_options(empty=empty, masks=masks, orientation=orientation)
        self.source = open_shards(root, split, "detect", cache, cache_gb)
        source = Source(self.source.label_files(), Path(self.source.folder))
        table, names = read_objects(source, self.source.meta.class_names, masks, orientation)
        super().__init__(
            Path(self.source.folder), table, names, split, empty=empty, masks=masks, orientation=orientation
        )

    @property
    def info(self) -> DatasetInfo:
        """Images not used for training are skipped when reading shards."""
        ends = np.searchsorted(self.rows, np.cumsum(self.source.counts))
        return replace(super().info, shards=tuple(np.diff(ends, prepend=0).tolist()))

    def path(self, index: int) -> str:
        raise ValueError("The images of shards are no files of their own.")

    def _image(self, row: int) -> tuple[str, bytes]:
        return self.source.read(row)

    def _heads(self, rows: np.ndarray) -> np.ndarray:
        """Nothing is read from a remote storage at the start: EXIF-rotated images raise when they are read."""
        if not is_local(self.source.folder):
            return np.zeros((len(rows), 3), dtype=np.int32)
        heads = [header(io.BytesIO(self.source.read(int(row))[1])) for row in rows]
        return np.array(heads, dtype=np.int32).reshape(-1, 3)


DATASETS = {
    "shards": Shards,
    "shards_detect": ObjectShards,
    "shards_segment": LabelMapShards,
    "shards_unlabelled": UnlabelledShards,
}
