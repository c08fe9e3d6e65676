"""Files in the local file system."""

import os
import stat
from typing import BinaryIO

from tetravit.data.storage.base import Entry, Stat, Storage


class LocalStorage(Storage):
    """The file system. Links are followed."""

    def list(self, folder: str) -> list[Entry]:
        with os.scandir(_plain(folder)) as entries:
            return [Entry(entry.name, entry.is_dir()) for entry in entries]

    def open(self, file: str) -> BinaryIO:
        return open(_plain(file), "rb")

    def stat(self, path: str) -> Stat:
        status = os.stat(_plain(path))
        return Stat(status.st_size, status.st_mtime, stat.S_ISDIR(status.st_mode))

    def join(self, folder: str, *names: str) -> str:
        return os.path.join(folder, *names)


def _plain(path: str) -> str:
    """A path without the scheme `file://`."""
    return path.removeprefix("file://")


STORAGE = {"file": LocalStorage}
