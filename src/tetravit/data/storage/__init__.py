"""Storages by URL scheme, one per file. A path without a scheme is local."""

import re

from tetravit.data.storage.base import Entry, Stat, Storage, StorageError, WrongBytes, cause_of, with_tries
from tetravit.registry import discover, suggestion

STORAGE = discover(__name__, "STORAGE")  # {"file": LocalStorage, ...}
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")  # at least two letters: C:\ is a drive


def scheme_of(path: str) -> str:
    """The scheme of a path: "s3" of "s3://bucket/x", "file" of a path without one."""
    match = _SCHEME.match(path)
    return match[1].lower() if match else "file"


def is_local(path: str) -> bool:
    """Whether a path is in the local file system."""
    return _SCHEME.match(path) is None


def storage_of(path: str) -> Storage:
    """The storage of `path`.

    Raises:
        ValueError: for an unknown scheme.
    """
    scheme = scheme_of(path)
    if scheme not in STORAGE:
        raise ValueError(f"No storage for {path!r}: unknown scheme {scheme!r}.{suggestion(scheme, STORAGE)}")
    storage: Storage = STORAGE[scheme]()
    return storage


__all__ = [
    "STORAGE",
    "Entry",
    "Stat",
    "Storage",
    "StorageError",
    "WrongBytes",
    "cause_of",
    "is_local",
    "scheme_of",
    "storage_of",
    "with_tries",
]
