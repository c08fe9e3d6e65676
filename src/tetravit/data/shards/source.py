"""Images of one split of a set of shards, by index."""

import hashlib
import os
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

from tetravit.data.shards.cache import ShardCache
from tetravit.data.shards.index import ROW, Meta, map_rows, read_meta
from tetravit.data.shards.tar import BLOCK, LONG, name_before
from tetravit.data.storage import StorageError, WrongBytes, cause_of, is_local, storage_of, with_tries
from tetravit.files import replace_file

OPEN = 64  # maximum number of open files per process
INDEXES = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tetravit" / "indexes"


class ShardSource:
    """Random access to the images of a split, and to their label maps.

    The index is mapped into memory and shared by all processes of a machine. Bytes are verified by CRC-32. A pickled
    copy opens its own files.

    Args:
        folder: that of shards.json, local or remote.
        part: "train", "val" or "test".
        cache: keeps whole remote shards on a local disk; None: images are read by ranges.

    Raises:
        ValueError: if the folder has no index, or lacks the split.
        StorageError: if the index cannot be read after several attempts.
    """

    def __init__(self, folder: str, part: str, *, cache: ShardCache | None = None) -> None:
        self.folder, self.part, self.cache = folder, part, cache
        self.meta: Meta = with_tries(folder, lambda: read_meta(folder))
        if part not in self.meta.parts:
            known = ", ".join(self.meta.parts)
            raise ValueError(f"The shards in {folder!r} have no part {part!r}; they have {known}.")
        self.shards = self.meta.parts[part]
        self._open_index()

    def _open_index(self) -> None:
        count = self.meta.count(self.part)
        self.rows = map_rows(self._local(f"{self.part}.index", count), count)
        segment = self.meta.kind == "segment"
        self.targets = map_rows(self._local(f"{self.part}.targets", count), count) if segment else None
        self._files: OrderedDict[int, int] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k not in ("rows", "targets", "_files")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open_index()

    @property
    def counts(self) -> tuple[int, ...]:
        """Images of each shard, in order."""
        return tuple(shard.count for shard in self.shards)

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, index: int) -> tuple[str, bytes]:
        """Name and bytes of an image.

        Raises:
            StorageError: if its shard cannot be read, or its bytes are wrong, after several attempts.
        """
        row = self.rows[index]
        offset, size = int(row["offset"]), int(row["size"])
        data = self._checked(row, offset - BLOCK, size + BLOCK, skip=BLOCK)
        name = name_before(data[:BLOCK])
        return f"{self._path(int(row['shard']))}/{name}", data[BLOCK:]

    def read_target(self, index: int) -> bytes:
        """The bytes of an image's label map."""
        assert self.targets is not None
        row = self.targets[index]
        return self._checked(row, int(row["offset"]), int(row["size"]), skip=0)

    def name(self, index: int) -> str:
        """The name of an image in its shard, without reading its bytes."""
        row = self.rows[index]
        offset, shard = int(row["offset"]), int(row["shard"])
        start = max(0, offset - LONG)
        blocks = with_tries(self._path(shard), lambda: self._range(shard, start, offset - start))
        return name_before(blocks) or str(index)

    def label_files(self) -> Path:
        """The COCO JSON of a detection split."""
        return Path(self._local(f"{self.part}.json", 0))

    def _checked(self, row: Any, offset: int, size: int, skip: int) -> bytes:
        shard, crc = int(row["shard"]), int(row["crc"])

        def read() -> bytes:
            data = self._range(shard, offset, size)
            if len(data) != size or zlib.crc32(memoryview(data)[skip:]) != crc:
                self._close(shard)
                raise WrongBytes("its bytes are not those of the index")
            return data

        try:
            return with_tries(self._path(shard), read)
        except StorageError:
            raise
        except OSError as error:  # missing or not readable
            raise StorageError(f"Cannot read {self._path(shard)} ({cause_of(error)}).") from error

    def _range(self, shard: int, offset: int, size: int) -> bytes:
        path = self._path(shard)
        if not is_local(path):
            row = self.shards[shard]
            kept = self.cache.fetch(path, row.size, row.sha256) if self.cache is not None else None
            if kept is None:
                return storage_of(path).read_range(path, offset, size)
            path = kept
        try:
            return os.pread(self._file(shard, path), size, offset)
        except OSError:
            self._close(shard)
            raise

    def _path(self, shard: int) -> str:
        name = self.shards[shard].name
        return name if os.path.isabs(name) else storage_of(self.folder).join(self.folder, name)

    def _file(self, shard: int, path: str) -> int:
        """An open file; beyond the limit, the least recently used one is closed."""
        if shard in self._files:
            self._files.move_to_end(shard)
            return self._files[shard]
        while len(self._files) >= OPEN:
            os.close(self._files.popitem(last=False)[1])
        self._files[shard] = os.open(path, os.O_RDONLY)
        return self._files[shard]

    def _close(self, shard: int) -> None:
        file = self._files.pop(shard, None)
        if file is not None:
            os.close(file)

    def _local(self, name: str, count: int) -> str:
        """The local path of an index file; a remote one is fetched once."""
        storage = storage_of(self.folder)
        path = storage.join(self.folder, name)
        if is_local(self.folder):
            if not os.path.isfile(path):
                raise ValueError(f"There is no file {path!r}; `tetravit data index {self.folder}` writes it.")
            return path
        mark = hashlib.sha256(f"{path} {self.meta.row()}".encode()).hexdigest()[:24]
        local = INDEXES / f"{mark}-{name}"
        if not local.exists() or (count and local.stat().st_size != count * ROW.itemsize):
            data = with_tries(path, lambda: storage.read(path))
            local.parent.mkdir(parents=True, exist_ok=True)
            replace_file(local, data)
        return str(local)
