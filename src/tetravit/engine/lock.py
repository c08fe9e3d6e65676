"""One run per folder: a lock that says who holds it, and that a dead holder does not keep."""

import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from tetravit.files import exclusive

SILENT_S = 300.0  # a holder on another machine that has not been heard of for so long is taken for dead


class Lock:
    """`RUN/lock.json`: pid, host and start of the process that trains there.

    Raises:
        ValueError: on entering, if another live run holds the folder.
    """

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / "lock.json"
        self._beat_at = 0.0

    def __enter__(self) -> Self:
        with _alone(self.path.parent):
            holder = self._holder()
            if holder is not None:
                raise ValueError(
                    f"{self.path.parent} is in use by process {holder['pid']} on {holder['host']}. "
                    f"Wait for it, or remove {self.path.name} there if it is gone."
                )
            own = {"pid": os.getpid(), "host": socket.gethostname(), "started": _started(os.getpid())}
            self.path.write_text(json.dumps(own))
        return self

    def __exit__(self, *error: object) -> None:
        self.path.unlink(missing_ok=True)

    def beat(self) -> None:
        """Show a waiting machine that this run is alive; cheap enough for every logged step."""
        if time.monotonic() - self._beat_at > SILENT_S / 10:
            self._beat_at = time.monotonic()
            with suppress(OSError):  # a full or vanished disk is reported by the next save
                os.utime(self.path)

    def _holder(self) -> dict[str, Any] | None:
        """Who holds the lock, or None if the holder is dead or the file is gone."""
        try:
            text, age_s = self.path.read_text(), time.time() - self.path.stat().st_mtime
        except FileNotFoundError:
            return None
        try:
            holder: dict[str, Any] = json.loads(text)
            pid, host, started = holder["pid"], holder["host"], holder["started"]
        except (ValueError, KeyError, TypeError):
            return None  # half a lock: its writer died while filling it
        if host != socket.gethostname() or sys.platform == "win32":  # no way to ask whether a process lives
            return holder if age_s < SILENT_S else None
        return holder if _alive(pid) and _started(pid) == started else None


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Only one process at a time looks at the lock and takes it."""
    if sys.platform == "win32":  # a folder has no file number there
        yield
        return
    file = os.open(folder, os.O_RDONLY)
    try:
        with exclusive(file):
            yield
    finally:
        os.close(file)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _started(pid: int) -> str:
    """When a process started, in ticks since boot, so that a reused pid is not mistaken; "" where unknown."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return ""
