"""The index of shards: a binary table per split, and the metadata in shards.json."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tetravit.data.storage import is_local, storage_of
from tetravit.structures import DataKind

META = "shards.json"
VERSION = 1
# One image: index of its shard, size in bytes, offset, class (-1: none), CRC-32 of the bytes.
ROW = np.dtype([("shard", "<u4"), ("size", "<u4"), ("offset", "<u8"), ("label", "<i4"), ("crc", "<u4")])
NAMES = {
    "classify": "shards",
    "detect": "shards_detect",
    "segment": "shards_segment",
    "unlabelled": "shards_unlabelled",
}  # kind of data: its data set in the menu


@dataclass(frozen=True)
class Shard:
    """A tar file. name: relative to the folder of shards.json, or absolute. size: in bytes."""

    name: str
    size: int
    sha256: str
    count: int


@dataclass(frozen=True)
class Meta:
    """The content of shards.json. parts: shards per split, in the order of their indices."""

    kind: DataKind
    class_names: tuple[str, ...]
    parts: Mapping[str, tuple[Shard, ...]]

    def row(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "version": VERSION,
            "kind": self.kind,
            "class_names": list(self.class_names),
            "parts": {part: [vars(shard) for shard in shards] for part, shards in self.parts.items()},
        }

    def count(self, part: str) -> int:
        return sum(shard.count for shard in self.parts[part])


def read_meta(folder: str) -> Meta:
    """The shards in a folder.

    Raises:
        ValueError: if there is no shards.json, or it is invalid.
        OSError: if it cannot be read.
    """
    storage = storage_of(folder)
    file = storage.join(folder, META)
    try:
        table = json.loads(storage.read(file))
    except FileNotFoundError:
        raise ValueError(
            f"There is no {META} in {folder!r}. `tetravit data index {folder}` makes one for tar files."
        ) from None
    except ValueError:
        raise ValueError(f"{file!r} does not read; `tetravit data index {folder}` writes it again.") from None
    if table.get("version") != VERSION:
        raise ValueError(f"{file!r} has version {table.get('version')!r}; this is read: {VERSION}.")
    parts = {part: tuple(Shard(**shard) for shard in shards) for part, shards in table["parts"].items()}
    return Meta(table["kind"], tuple(table["class_names"]), parts)


def find_meta(folder: str | None) -> Meta | None:
    """The shards in a local folder; None: no shards."""
    if folder is None or not is_local(folder) or not os.path.isfile(os.path.join(folder, META)):
        return None
    return read_meta(folder)


def map_rows(file: str, count: int) -> np.ndarray:
    """The rows (count,) of an index file, mapped into memory.

    Raises:
        ValueError: if the file has another size.
    """
    size = os.path.getsize(file)
    if size != count * ROW.itemsize:
        raise ValueError(
            f"{file!r} has {size:,} bytes; the index of {count:,} images has {count * ROW.itemsize:,}."
        )
    return np.memmap(file, dtype=ROW, mode="r", shape=(count,))
