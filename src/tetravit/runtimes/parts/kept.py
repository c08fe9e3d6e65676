"""Programs of `optimize` on disk, so that a model is optimised once and started in a second.

A program is a folder `programs/KEY` in this package's cache folder (TETRAVIT_HOME): data files, and
`entry.json` with their sizes and hashes. It is written completely under another name, then renamed. An entry whose
files have other hashes is removed and built again. If the folder grows beyond `limit()`, the least recently used
entries are removed. If it cannot be written, nothing is kept.
"""

import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tetravit.files import read_json, write_file, write_json
from tetravit.weights.store import home

LIMIT_GB = 4.0
RECORD = "entry.json"
STALE_S = 3600  # age at which drafts of killed processes are removed
DRAFT = ".draft-"


def folder() -> Path:
    """The folder of kept programs."""
    return home() / "programs"


def limit() -> int:
    """The maximum size of all programs together, in bytes: TETRAVIT_PROGRAMS_GB, default 4; 0: nothing is kept.

    Raises:
        ValueError: if TETRAVIT_PROGRAMS_GB is not a number from 0 up.
    """
    text = os.environ.get("TETRAVIT_PROGRAMS_GB", "")
    try:
        size = float(text) if text else LIMIT_GB
        if not 0 <= size < float("inf"):
            raise ValueError
    except ValueError:
        raise ValueError(f"TETRAVIT_PROGRAMS_GB is a number of gigabytes from 0 up; got {text!r}.") from None
    return int(size * 1e9)


@dataclass
class Entry:
    """A kept program. facts: JSON-ready. used: time of the last use, in seconds since 1970."""

    key: str
    path: Path
    facts: dict[str, Any] = field(default_factory=dict)
    size: int = 0
    used: float = 0.0

    def file(self, name: str) -> Path | None:
        """The data file of this name, or None."""
        return self.path / name if name in self.facts.get("files", {}) else None


def key_of(parts: Mapping[str, Any]) -> str:
    """The key of a program: a hash of everything that it depends on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:40]


def read(key: str, verify: Collection[str] | None = None) -> Entry | None:
    """The entry with this key; None: there is none, or it was damaged and has been removed.

    verify: names of the files whose hashes are checked; None: all.
    """
    entry = _entry(folder() / key)
    if entry is None:
        return None
    if not is_whole(entry, verify):
        remove(entry)
        return None
    with suppress(OSError):  # a read-only folder can still be read
        os.utime(entry.path / RECORD)
    return entry


def write(
    key: str, files: Mapping[str, bytes | Callable[[Path], object]], facts: Mapping[str, Any]
) -> tuple[Entry | None, str]:
    """Keep a program, unless another process has just done so.

    Args:
        files: name -> bytes, or a function that writes the file at a path.
        facts: of the entry, JSON-ready.

    Returns:
        the entry and "", or None and why it is not kept.
    """
    room = limit()
    if room == 0:
        return None, "TETRAVIT_PROGRAMS_GB is 0"
    place = folder() / key
    draft = folder() / f"{DRAFT}{key[:8]}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    try:
        draft.mkdir(parents=True)
        table = {name: _write(draft / name, content) for name, content in files.items()}
        size = sum(row["bytes"] for row in table.values())
        if size > room:
            return None, f"it has {size / 1e9:.2g} GB, more than TETRAVIT_PROGRAMS_GB={room / 1e9:g}"
        write_json(draft / RECORD, {**facts, "key": key, "files": table})
        if (
            place.exists() and _entry(place) is None
        ):  # damaged; in this order, as another process may place one now
            _remove(place)
        with suppress(FileExistsError):  # another process was faster
            _rename(draft, place)
        entry = _entry(place)
        _make_room(room, spare=place)
        return (entry, "") if entry else (None, f"{place} cannot be read")
    except OSError as error:
        return None, f"{folder()} cannot be written: {error.strerror or error}"
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def remove(entry: Entry) -> None:
    """Remove an entry; no error if that is not permitted."""
    _remove(entry.path)


def update(entry: Entry, facts: Mapping[str, Any]) -> None:
    """Add facts to an entry; no error if it cannot be written or has been removed."""
    with suppress(OSError):
        kept = read_json(entry.path / RECORD)
        if kept.get("key") == entry.key:
            entry.facts = {**kept, **facts}
            write_json(entry.path / RECORD, entry.facts)


def add(entry: Entry, name: str, content: bytes | Callable[[Path], object]) -> None:
    """Add a data file to an entry; no error if it cannot be written or exceeds the limit."""
    with suppress(OSError):
        draft = entry.path / f".{name}.{os.getpid()}-{uuid.uuid4().hex[:8]}"
        try:
            row = _write(draft, content)
            if sum(one["bytes"] for one in entry.facts["files"].values()) + row["bytes"] > limit():
                return
            os.replace(draft, entry.path / name)
            kept = read_json(entry.path / RECORD)
            update(entry, {"files": {**kept.get("files", {}), name: row}})
            _make_room(limit(), spare=entry.path)
        finally:
            draft.unlink(missing_ok=True)


def discard(entry: Entry, name: str) -> None:
    """Remove a data file of an entry; no error if it cannot be written or has been removed."""
    files = {key: row for key, row in entry.facts.get("files", {}).items() if key != name}
    update(entry, {"files": files})
    with suppress(OSError):
        (entry.path / name).unlink()


def entries() -> list[Entry]:
    """All kept programs, the most recently used first."""
    programs = [entry for path in _folders() if (entry := _entry(path))]
    return sorted(programs, key=lambda entry: entry.used, reverse=True)


def clear() -> tuple[int, int]:
    """Remove all kept programs; returns their number and their size in bytes.

    Raises:
        OSError: if one cannot be removed.
    """
    programs = entries()
    for path in [*_folders(), *_drafts()]:
        shutil.rmtree(path)
    return len(programs), sum(entry.size for entry in programs)


def _write(path: Path, content: bytes | Callable[[Path], object]) -> dict[str, Any]:
    if callable(content):
        content(path)
        return {"bytes": path.stat().st_size, "sha256": _hash(path)}
    return write_file(path, content)


def _rename(draft: Path, place: Path) -> None:
    """Raises: FileExistsError if there is a folder with files at `place`."""
    try:
        os.rename(draft, place)
    except OSError:
        if place.is_dir():
            raise FileExistsError(str(place)) from None
        raise


def _entry(path: Path) -> Entry | None:
    record = path / RECORD
    try:
        facts, used = read_json(record), record.stat().st_mtime
    except OSError:
        return None
    files = facts.get("files")
    if facts.get("key") != path.name or not isinstance(files, dict):
        return None
    try:
        size = sum(int(row["bytes"]) for row in files.values())
    except (TypeError, KeyError, ValueError):
        return None
    return Entry(path.name, path, facts, size, used)


def is_whole(entry: Entry, names: Collection[str] | None = None) -> bool:
    """Whether every file has its recorded size, and those in `names` (None: all) their recorded hashes."""
    try:
        return all(
            (entry.path / name).stat().st_size == row["bytes"]
            and ((names is not None and name not in names) or _hash(entry.path / name) == row["sha256"])
            for name, row in entry.facts["files"].items()
        )
    except (OSError, KeyError, TypeError):
        return False


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _folders() -> Iterator[Path]:
    """The folders of entries, damaged ones included."""
    try:
        yield from (p for p in folder().iterdir() if p.is_dir() and not p.name.startswith("."))
    except OSError:
        return


def _drafts() -> list[Path]:
    try:
        return [path for path in folder().iterdir() if path.name.startswith(DRAFT)]
    except OSError:
        return []


def _make_room(room: int, spare: Path) -> None:
    """Remove the least recently used entries until the others fit, and drafts of killed processes."""
    now = time.time()
    for path in _drafts():
        with suppress(OSError):
            if now - path.stat().st_mtime > STALE_S:
                _remove(path)
    kept = entries()
    total = sum(entry.size for entry in kept)
    for entry in reversed(kept):
        if total <= room:
            return
        if entry.path != spare:
            _remove(entry.path)
            total -= entry.size


def _remove(path: Path) -> None:
    """Remove a folder atomically, by a rename first; no error if that is not permitted."""
    with suppress(OSError):
        gone = path.with_name(f"{DRAFT}gone-{uuid.uuid4().hex[:8]}")
        os.rename(path, gone)
        shutil.rmtree(gone, ignore_errors=True)
