"""What a storage offers: folders are listed, files are read, by their full paths.

Paths are texts as users write them, scheme included: "/images/train/1.jpg", "s3://bucket/train/1.jpg". A storage
holds no open connection between calls, or opens it again after it is pickled: workers receive a copy.
"""

from abc import ABC, abstractmethod
from typing import BinaryIO, NamedTuple


class Entry(NamedTuple):
    """One name in a folder."""

    name: str
    is_folder: bool


class Stat(NamedTuple):
    """What is known of a file without reading it. size: in bytes. modified: seconds since 1970; 0: not known."""

    size: int
    modified: float
    is_folder: bool


class Storage(ABC):
    """Files under paths of one scheme.

    Raises:
        OSError: from every method, as `open` raises it: FileNotFoundError, PermissionError, ...
    """

    @abstractmethod
    def list(self, folder: str) -> list[Entry]:
        """The names directly inside a folder, in no particular order."""

    @abstractmethod
    def open(self, file: str) -> BinaryIO:
        """A file open for reading; the caller closes it."""

    @abstractmethod
    def stat(self, path: str) -> Stat:
        """Size and time of a file, or that it is a folder."""

    def read(self, file: str) -> bytes:
        """All bytes of a file."""
        with self.open(file) as stream:
            return stream.read()

    def exists(self, path: str) -> bool:
        """Whether a file or a folder has this path."""
        try:
            self.stat(path)
        except OSError:
            return False
        return True

    def join(self, folder: str, *names: str) -> str:
        """The path of a name below a folder."""
        return "/".join((folder.rstrip("/"), *names))
