"""One run per folder: a lock file that expires with its holder."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from tetravit.files import exclusive

SILENT_S = 300.0  # silence after which a holder on another machine counts as dead
BEAT_S = 10.0  # between heartbeats
MISSED = 3  # missed heartbeats tolerated
# Job ids that survive a restart of the job: an earlier holder with the same id has ended.
JOBS = ("SLURM_JOB_ID", "TETRAVIT_JOB_ID")
ENDED = (
    "COMPLETED",
    "CANCELLED",
    "FAILED",
    "TIMEOUT",
    "NODE_FAIL",
    "PREEMPTED",
    "OUT_OF_MEMORY",
    "BOOT_FAIL",
)


class Lock:
    """`RUN/lock.json`: pid, host, start and job of the process that trains in the folder.

    Inside the context, the file's modification time is renewed every 10 s. A holder on this host is valid while its
    process lives. One on another host is valid until its file is 300 s old, its SLURM job has ended, or its job is
    this one.

    say: receives a line while waiting.

    Raises:
        ValueError: on entering, if another live run holds the folder.
    """

    def __init__(self, run_dir: Path, say: Callable[[str], object] = lambda text: None) -> None:
        self.path = run_dir / "lock.json"
        self.say = say
        self._left = threading.Event()
        self._beats: threading.Thread | None = None

    def __enter__(self) -> Self:
        while not self._taken():
            self._wait()
        self._left.clear()
        self._beats = threading.Thread(target=self._beat_on, name="lock", daemon=True)
        self._beats.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.release()
        if self._beats is not None:
            self._beats.join()

    def release(self) -> None:
        """Release the folder; a missing or read-only folder is not an error."""
        self._left.set()
        with suppress(OSError):
            self.path.unlink(missing_ok=True)

    def beat(self) -> None:
        """Renew the modification time: a heartbeat."""
        with suppress(OSError):  # a full or vanished disk is reported by the next save
            os.utime(self.path)

    def _beat_on(self) -> None:
        while not self._left.wait(BEAT_S):
            self.beat()

    def _taken(self) -> bool:
        """Take the lock, unless a holder elsewhere may be alive.

        Raises:
            ValueError: if the holder is alive.
        """
        with _alone(self.path.parent):
            holder = self._holder()
            if holder is not None:
                if holder["host"] == socket.gethostname() or self._silence() < MISSED * BEAT_S:
                    raise ValueError(
                        f"{self.path.parent} is in use by process {holder['pid']} on {holder['host']}. "
                        f"Wait for it, or remove {self.path.name} there if it is gone."
                    )
                return False
            pid = os.getpid()
            own = {"pid": pid, "host": socket.gethostname(), "started": _started(pid), "job": _job()}
            self.path.write_text(json.dumps(own))
            return True

    def _wait(self) -> None:
        """Wait until a silent holder elsewhere counts as dead, releases the lock, or renews it."""
        holder, silence = self._holder(), self._silence()
        if holder is None:
            return
        self.say(
            f"{self.path.parent} is held by {holder['host']}, silent for {silence:.0f} s; waiting up to"
            f" {SILENT_S:.0f} s."
        )
        while holder is not None and self._silence() >= MISSED * BEAT_S:
            time.sleep(min(1.0, BEAT_S))
            holder = self._holder()

    def _silence(self) -> float:
        """Seconds since the holder's last heartbeat, by the clock of the file system."""
        try:
            probe = self.path.with_name(f".clock_{socket.gethostname()}_{os.getpid()}")
            probe.touch()
            now = probe.stat().st_mtime
            probe.unlink()
            return max(0.0, now - self.path.stat().st_mtime)
        except FileNotFoundError:
            return SILENT_S

    def _holder(self) -> dict[str, Any] | None:
        """The holder of the lock; None if it is dead or the file is missing."""
        try:
            text = self.path.read_text()
        except FileNotFoundError:
            return None
        try:
            holder: dict[str, Any] = json.loads(text)
            pid, host, started = holder["pid"], holder["host"], holder["started"]
        except (ValueError, KeyError, TypeError):
            return None  # an incomplete lock: its writer was killed
        if (
            host != socket.gethostname() or sys.platform == "win32"
        ):  # a process on another host cannot be checked
            job = holder.get("job")
            if job is not None and (job == _job() or _job_ended(job)):
                return None
            return holder if self._silence() < SILENT_S else None
        return holder if _alive(pid) and _started(pid) == started else None


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """A critical section: one process at a time reads and takes the lock."""
    if sys.platform == "win32":  # folders cannot be opened
        yield
        return
    file = os.open(folder, os.O_RDONLY)
    try:
        with exclusive(file):
            yield
    finally:
        os.close(file)


def _job() -> str | None:
    """The scheduler job of this process; its id is the same after a restart."""
    return next((os.environ[name] for name in JOBS if os.environ.get(name)), None)


def _job_ended(job: str) -> bool:
    """Whether the job has ended according to SLURM; False without SLURM, or for an unknown job."""
    try:
        command = ["squeue", "--noheader", "--jobs", job, "--states", "all", "--format", "%T"]
        states = subprocess.run(
            command, capture_output=True, text=True, timeout=20, check=True
        ).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return False
    return bool(states) and all(state in ENDED for state in states)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _started(pid: int) -> str:
    """Start time of a process in ticks since boot, to detect reused pids; "" if unknown."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return ""
