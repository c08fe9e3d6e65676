"""Files that appear whole and on disk, or not at all; a lock that a dead process does not keep."""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

try:
    import fcntl
except ImportError:  # Windows: two processes may write the same file one after the other; each write is whole
    fcntl = None  # type: ignore[assignment]


@contextmanager
def atomic(path: str | Path) -> Iterator[BinaryIO]:
    """Write a file beside `path` and put it in its place, on disk, when the block ends without an error."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def replace_file(path: Path, data: bytes) -> None:
    """Write a whole file in place of another, or leave the other one whole."""
    with atomic(path) as file:
        file.write(data)


def write_json(path: Path, table: Mapping[str, Any]) -> None:
    """Write a small JSON file, whole or not at all."""
    replace_file(path, json.dumps(table, indent=1).encode())


def read_json(path: Path) -> dict[str, Any]:
    """The object in a small JSON file; {} where there is none, or it is damaged."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return table if isinstance(table, dict) else {}


def write_file(path: Path, data: bytes) -> dict[str, Any]:
    """Write a file in place and flush it to the disk; returns its size in `bytes` and its `sha256`.

    For files inside a folder that is renamed once it is complete; elsewhere use `replace_file`.
    """
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0), 0o644)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(file, view[: 1 << 24]) :]
        os.fsync(file)
    finally:
        os.close(file)
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def sync_folder(folder: Path) -> None:
    """Flush the names inside a folder to the disk, so that a rename survives a power cut; nothing on Windows."""
    if sys.platform == "win32":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def exclusive(file: int, on_wait: Callable[[], object] = lambda: None) -> Iterator[None]:
    """One process at a time holds the lock of an open file; the system frees the lock of a process that dies.

    Where the system or the file system has no locks, nothing is locked. on_wait: called once if
    another process holds the lock.
    """
    if fcntl is not None:
        with suppress(OSError):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                on_wait()
                fcntl.flock(file, fcntl.LOCK_EX)
    yield


def try_lock(file: int) -> bool:
    """Take the lock of an open file unless another process holds it; returns whether this one may go on.

    The lock ends when the file is closed. Where the system has no locks, it is always free.
    """
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def check_room(folder: Path, needed_mib: float) -> None:
    """Refuse a folder that cannot be written, or whose disk lacks the room, before any work is done.

    Raises:
        ValueError: naming the folder and the reason.
    """
    probe = folder / ".probe"
    made = [p for p in (folder, *folder.parents) if not p.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_file(probe, b"tetravit")
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise ValueError(f"{folder} cannot be written: {reason}.") from None
    finally:
        _remove(probe, made)
    free_mib = (
        shutil.disk_usage(next(p for p in (folder, *folder.absolute().parents) if p.exists())).free / 2**20
    )
    if free_mib < needed_mib:
        raise ValueError(
            f"{folder} needs about {needed_mib:.0f} MiB for checkpoints; its disk has {free_mib:.0f} MiB free."
        )


def _remove(probe: Path, made: list[Path]) -> None:
    """Remove the probe and the folders made for it; the run makes them again when it starts."""
    try:
        probe.unlink(missing_ok=True)
        for folder in made:
            folder.rmdir()
    except OSError:
        return  # nothing was made, or something else moved in meanwhile
