"""The interface of a storage: list folders and read files, by full path.

Paths are strings as users write them, with scheme: "/images/train/1.jpg", "s3://bucket/train/1.jpg". A storage has no
open connection between calls, or reopens it after unpickling: workers receive a copy.
"""

import errno
import http.client
import logging
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple, TypeVar

LOG = logging.getLogger("tetravit.data")
# Permanent errors of a path, not retried. Any other error may be a transient fault of disk, server or network.
FINAL = frozenset(
    (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
)

Result = TypeVar("Result")


class StorageError(OSError):
    """A file that disk, server or network failed to deliver: not a fault of the data, so it is never skipped."""


class WrongBytes(OSError):
    """Bytes with a wrong checksum."""


@dataclass(frozen=True)
class Tries:
    """Retry policy. seconds: timeout of one attempt. pause: before the second attempt, doubled for each next one."""

    count: int = 5
    seconds: float = 60.0
    pause: float = 0.5


TRIES = Tries(
    count=int(os.environ.get("TETRAVIT_READ_TRIES", "5")),
    seconds=float(os.environ.get("TETRAVIT_READ_SECONDS", "60")),
)


def with_tries(name: str, read: Callable[[], Result], tries: Tries | None = None) -> Result:
    """The result of `read`, which is retried after faults.

    Raises:
        StorageError: if every attempt fails: `Cannot read NAME after 5 tries (timed out).`
        OSError: from `read`, if the path is wrong or not readable.
    """
    tries = tries or TRIES
    for number in range(1, tries.count + 1):
        try:
            return read()
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and (error.errno in FINAL or isinstance(error, StorageError)):
                raise
            if number == tries.count:
                raise StorageError(
                    f"Cannot read {name} after {tries.count} tries ({cause_of(error)})."
                ) from error
            LOG.info("%s: %s; try %d of %d follows.", name, cause_of(error), number + 1, tries.count)
            time.sleep(tries.pause * 2 ** (number - 1))
    raise AssertionError("a read is tried once or more")


def cause_of(error: Exception) -> str:
    """The cause of a failed read, in a few words."""
    if isinstance(error, TimeoutError):
        return "timed out"
    if isinstance(error, http.client.HTTPException):
        return "the connection broke off"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return (text if text[1:2].isupper() else f"{text[0].lower()}{text[1:]}").rstrip(".")


class Entry(NamedTuple):
    """One name in a folder."""

    name: str
    is_folder: bool


class Stat(NamedTuple):
    """Metadata of a file, without reading it. size: in bytes. modified: seconds since 1970; 0: unknown."""

    size: int
    modified: float
    is_folder: bool


class Storage(ABC):
    """Files under paths of one scheme.

    Raises:
        OSError: from every method, with the classes of `open`: FileNotFoundError, PermissionError, ...
    """

    @abstractmethod
    def list(self, folder: str) -> list[Entry]:
        """The names directly inside a folder, in no particular order."""

    @abstractmethod
    def open(self, file: str) -> BinaryIO:
        """A file open for reading; the caller closes it."""

    @abstractmethod
    def stat(self, path: str) -> Stat:
        """Size and time of a file, or the fact that it is a folder."""

    def read(self, file: str) -> bytes:
        """All bytes of a file."""
        with self.open(file) as stream:
            return stream.read()

    def read_range(self, file: str, offset: int, size: int) -> bytes:
        """`size` bytes of a file from `offset`; fewer at its end."""
        with self.open(file) as stream:
            stream.seek(offset)
            return stream.read(size)

    def exists(self, path: str) -> bool:
        """Whether a file or a folder exists at this path.

        Raises:
            ValueError: if unknown: no permission, or the server does not respond.
        """
        try:
            self.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            cause = (
                error.strerror
                or str(error)
                or ("timed out" if isinstance(error, TimeoutError) else "unknown")
            )
            raise ValueError(f"Cannot read {path!r}: {cause.lower()}.") from None
        return True

    def join(self, folder: str, *names: str) -> str:
        """The path of a name inside a folder."""
        return "/".join((folder.rstrip("/"), *names))
