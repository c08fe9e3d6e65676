"""Atomic file writes, and a lock that is released when its process dies."""

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
except ImportError:  # Windows: no lock: concurrent writes follow each other, each is atomic
    fcntl = None  # type: ignore[assignment]


@contextmanager
def atomic(path: str | Path) -> Iterator[BinaryIO]:
    """Write a temporary file beside `path`, flush it to disk and rename it, if the block ends without an error."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with named(path), partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


@contextmanager
def named(path: str | Path) -> Iterator[None]:
    """Errors of the operating system without a file name, as a full disk gives them, get that of `path`."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = os.fspath(path)
        raise


def replace_file(path: Path, data: bytes) -> None:
    """Replace a file atomically."""
    with atomic(path) as file:
        file.write(data)


def write_json(path: Path, table: Mapping[str, Any]) -> None:
    """Write a small JSON file atomically."""
    replace_file(path, json.dumps(table, indent=1).encode())


def read_json(path: Path) -> dict[str, Any]:
    """The object in a small JSON file; {} if it is missing or damaged."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return table if isinstance(table, dict) else {}


def write_file(path: Path, data: bytes) -> dict[str, Any]:
    """Write a file in place and flush it to disk; returns its size in `bytes` and its `sha256`.

    For files in a folder that is renamed once it is complete; elsewhere use `replace_file`.
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
    """Flush a folder's entries to disk, so that a rename survives a power failure; no effect on Windows."""
    if sys.platform == "win32":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def exclusive(file: int, on_wait: Callable[[], object] = lambda: None) -> Iterator[None]:
    """An exclusive lock on an open file; the system releases it when the process dies.

    No effect if the system or the file system has no locks. on_wait: called once if another process holds the lock.
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
    """Take the lock of an open file unless another process holds it; returns whether it was taken.

    The lock is released when the file is closed. On systems without locks it is always free.
    """
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def check_room(folder: Path, needed_mib: float) -> None:
    """Check that a folder is writable and its disk has enough space, before any work is done.

    Raises:
        ValueError: with the folder and the cause.
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
    """Remove the probe file and the folders created for it; the run creates them again."""
    try:
        probe.unlink(missing_ok=True)
        for folder in made:
            folder.rmdir()
    except OSError:
        return  # nothing was created, or the folder is not empty
