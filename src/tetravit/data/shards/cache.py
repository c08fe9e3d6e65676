"""Cache of whole remote shards on a local disk: bounded, atomic, shared by processes."""

import errno
import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from tetravit.data.storage import WrongBytes, storage_of, with_tries
from tetravit.files import exclusive, try_lock

LOG = logging.getLogger("tetravit.data")
PIECE = 8 << 20  # bytes per range request


class ShardCache:
    """Files in a folder, with least-recently-used eviction.

    One process fetches a shard while the others wait; a shard gets its name once it is complete and its SHA-256 is
    verified. If the disk is full, or a shard exceeds the limit, `fetch` returns None, and its images are read by
    ranges.

    Args:
        folder: created if missing.
        limit: total bytes of all shards.
    """

    def __init__(self, folder: str | os.PathLike[str], limit: int) -> None:
        self.folder, self.limit = Path(folder), limit
        self._full = False

    def fetch(self, url: str, size: int, sha256: str) -> str | None:
        """The local file of a shard."""
        name = f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{url.rpartition('/')[2]}"
        file = self.folder / name
        if _touched(file, size):
            return str(file)
        if size > self.limit:
            return None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with _locked(self.folder / f".{name}.lock"):
                if _touched(file, size):  # another process fetched it
                    return str(file)
                return str(file) if self._fetched(url, size, sha256, file) else None
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG):
                raise
            if not self._full:
                self._full = True
                LOG.warning(
                    "The cache of shards %s cannot be written (%s); images are read from their storage.",
                    self.folder,
                    (error.strerror or str(error)).lower(),
                )
            return None

    def _fetched(self, url: str, size: int, sha256: str, file: Path) -> bool:
        part = file.with_name(f"{file.name}.part")
        try:
            with part.open("wb") as stream:
                self._reserve(stream.fileno(), size)
                with_tries(url, lambda: _copy(url, size, sha256, stream.fileno()))
                os.fsync(stream.fileno())
            os.replace(part, file)
        except BaseException:
            with suppress(OSError):
                part.unlink(missing_ok=True)
            raise
        return True

    def _reserve(self, file: int, size: int) -> None:
        """Make room for a file, and reserve it against other processes."""
        with _locked(self.folder / ".lock"):
            self._shrink(self.limit - size)
            for _ in range(3):
                try:
                    os.posix_fallocate(file, 0, size)
                    return
                except OSError as error:
                    if error.errno == errno.EOPNOTSUPP:
                        os.ftruncate(file, size)
                        return
                    os.ftruncate(file, 0)
                    if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not self._shrink(
                        self._total() - size
                    ):
                        raise
            os.posix_fallocate(file, 0, size)

    def _files(self) -> list[tuple[float, int, Path]]:
        """Last use, size and path of every shard; leftovers of dead processes are removed."""
        files = []
        for file in self.folder.iterdir():
            if file.name.startswith("."):
                continue
            with suppress(OSError):
                if file.name.endswith(".part") and _is_free(self.folder / f".{file.name[:-5]}.lock"):
                    file.unlink()
                    continue
                status = file.stat()
                files.append((status.st_mtime, status.st_size, file))
        return sorted(files)

    def _total(self) -> int:
        return sum(size for _, size, _ in self._files())

    def _shrink(self, limit: int) -> bool:
        """Remove least recently used shards until the others have `limit` bytes; returns whether any was removed."""
        files, removed = self._files(), False
        total = sum(size for _, size, _ in files)
        for _, size, file in files:
            if total <= max(0, limit):
                break
            if not file.name.endswith(".part"):
                file.unlink(missing_ok=True)  # open readers are unaffected
                total, removed = total - size, True
        return removed


def _copy(url: str, size: int, sha256: str, file: int) -> None:
    """Download all bytes of a shard into an open file."""
    storage, digest = storage_of(url), hashlib.sha256()
    for offset in range(0, size, PIECE):
        want = min(PIECE, size - offset)
        data = with_tries(url, partial(storage.read_range, url, offset, want))
        if len(data) != want:
            raise WrongBytes(f"it has {offset + len(data):,} bytes, not {size:,}")
        digest.update(data)
        os.pwrite(file, data, offset)
    if digest.hexdigest() != sha256:
        raise WrongBytes("its bytes are not those of the index")


def _touched(file: Path, size: int) -> bool:
    """Whether a shard exists; updates its time of last use."""
    try:
        if file.stat().st_size != size:
            return False
        os.utime(file)
    except OSError:
        return False
    return True


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        with exclusive(file):
            yield
    finally:
        os.close(file)


def _is_free(path: Path) -> bool:
    """Whether no process holds a lock; a lock of this process, through another file object, counts as held."""
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        return try_lock(file)
    finally:
        os.close(file)
