"""Look up files by the names in annotations.

A name may come from another computer: with backslashes, other case, another extension or none, URL escapes, another
Unicode form, or more or fewer parent folders. Only files inside the folder are matched.
"""

import os
import unicodedata
from collections.abc import Collection
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from tetravit.data.files import ENDINGS, UNREADABLE, is_junk_folder

KNOWN = ENDINGS | UNREADABLE | {".xml", ".txt"}  # known extensions; ".0001" and ". 5" are part of the name


class Lookup:
    """Index of the files below a folder, at any depth, for lookup by annotated names.

    Args:
        folder: the folder to index.
        endings: extensions accepted for a name with another extension, or none.

    Raises:
        OSError: if the folder cannot be listed.
    """

    def __init__(self, folder: Path, endings: Collection[str] = ENDINGS | UNREADABLE) -> None:
        self.folder, self.endings = folder, frozenset(endings)
        self.names = sorted(files_below(folder))
        self.exact = frozenset(self.names)
        self._whole: dict[str, list[str]] | None = None  # by normalized path
        self._last: dict[str, list[str]] = {}  # by file name
        self._stems: dict[str, list[str]] = {}  # by file name without extension, for `endings`

    def find(self, name: str) -> str | None:
        """The path of a file relative to the folder, with `/`; None: no match.

        Raises:
            ValueError: if several files match.
        """
        if name in self.exact:
            return name
        if self._whole is None:
            self._index()
        assert self._whole is not None
        for path in _readings(name):
            if path in self._whole:
                return self._one(name, self._whole[path])
        for path in _readings(name):
            last = path.rpartition("/")[2]
            for index, key in ((self._last, last), (self._stems, last), (self._stems, _stem(last))):
                fitting = [file for file in index.get(key, ()) if _same_end(_folded(file), path)]
                if fitting:
                    return self._one(name, fitting)
        return None

    def _one(self, name: str, files: list[str]) -> str:
        if len(files) == 1:
            return files[0]
        raise ValueError(
            f"{name!r} fits {len(files)} files in {str(self.folder)!r}: {files[0]!r} and {files[1]!r}; rename one."
        )

    def _index(self) -> None:
        self._whole = {}
        for file in self.names:
            path = _folded(file)
            last = path.rpartition("/")[2]
            self._whole.setdefault(path, []).append(file)
            self._last.setdefault(last, []).append(file)
            if os.path.splitext(last)[1] in self.endings:
                self._stems.setdefault(_stem(last), []).append(file)


def files_below(folder: Path) -> list[str]:
    """Paths of all non-hidden files below a folder, relative to it, with `/`.

    Raises:
        OSError: if the folder cannot be listed.
    """
    paths: list[str] = []

    def walk(place: str, prefix: str, above: frozenset[str]) -> None:
        here = os.path.realpath(place)
        if here in above:  # a link to a parent folder
            return
        with os.scandir(place) as entries:
            for entry in entries:
                if entry.is_dir():
                    if not is_junk_folder(entry.name):
                        walk(entry.path, f"{prefix}{entry.name}/", above | {here})
                elif not entry.name.startswith("."):
                    paths.append(prefix + entry.name)

    walk(os.fspath(folder), "", frozenset())
    return paths


def visible_files(folder: Path, *endings: str) -> list[Path]:
    """The files in a folder that have one of some endings, in any letters, without hidden ones; sorted.

    Hidden are those that macOS writes beside a file: `._train.json` is no JSON.
    """
    if not folder.is_dir():
        return []
    return sorted(
        path for path in folder.iterdir() if path.suffix.lower() in endings and not path.name.startswith(".")
    )


def check_name(name: Any, where: str) -> str:
    """A file name from annotations, as text.

    Raises:
        ValueError: if it is not a file name.
    """
    if not isinstance(name, str) or not name.strip() or "\0" in name or not _encodes(name):
        raise ValueError(f"{where}: file_name is the name of an image below the image folder; got {name!r}.")
    return name


def _encodes(name: str) -> bool:
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return True


def _readings(name: str) -> list[str]:
    """Readings of a name, most literal first: as it is; URL-decoded; the path of a URL."""
    readings = [_folded(name)]
    if "%" in name:
        readings.append(_folded(unquote(name)))
    if "://" in name or "?" in name:
        path, _, query = unquote(name).partition("?")
        readings.append(_folded(path.rpartition("://")[2]))
        readings += [_folded(part.partition("=")[2]) for part in query.split("&") if "=" in part]
    return [reading for reading in dict.fromkeys(readings) if reading]


def _folded(name: str) -> str:
    """A normalized path: lower case, composed Unicode, `/` separators, no `.` parts."""
    parts = unicodedata.normalize("NFC", name.strip()).casefold().replace("\\", "/").split("/")
    return "/".join(part for part in parts if part not in ("", "."))


def _stem(last: str) -> str:
    stem, ending = os.path.splitext(last)
    return stem if ending in KNOWN else last


def _same_end(file: str, name: str) -> bool:
    """Whether the shorter of two folder paths is a suffix of the other."""
    ours, theirs = file.split("/")[:-1], [part for part in name.split("/")[:-1] if part != ".."]
    fewer = min(len(ours), len(theirs))
    return not fewer or ours[-fewer:] == theirs[-fewer:]
