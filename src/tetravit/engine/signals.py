"""Stop requests: finish the step, save, exit with a line that names the command to continue.

A request is a signal to this process, a file of `engine.launch`, or the death of the parent process. The first of
several counts.
"""

import os
import signal
import threading
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import ClassVar, Self

STOPPING = ("SIGTERM", "SIGINT", "SIGUSR1")
LAUNCHED = (
    "TETRAVIT_LAUNCHED"  # folder of the launcher: it writes `stop`, ranks that have saved write `saved`
)


class Interrupted(Exception):
    """A run was stopped by a signal after saving; the text names the command that continues it.

    Programs that end because of it exit with code 75, which schedulers treat as "try again".
    """

    exit_code = 75


class Signals:
    """Records stop requests inside its context. A second SIGINT ends the process at once.

    A nested context starts with the request of the outer one. Python can handle signals only in the main thread: in
    other threads none are recorded.

    names: the signals. ignore_after: after the first request, ignore signals until the process ends, so that repeated
    signals change neither the saved files nor the exit code.
    """

    _open: ClassVar[list["Signals"]] = []

    def __init__(self, names: tuple[str, ...] = STOPPING, *, ignore_after: bool = False) -> None:
        self._numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
        self._ignore_after = ignore_after
        self._received: str | None = None
        self._before: dict[int, object] = {}
        self._parent = os.getppid()

    def __enter__(self) -> Self:
        if Signals._open:
            self._received = Signals._open[-1]._received
        Signals._open.append(self)
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in self._numbers}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        Signals._open.remove(self)
        ignored = self._ignore_after and self.received is not None
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_IGN if ignored else handler)  # type: ignore[arg-type]

    @property
    def received(self) -> str | None:
        """The source of the stop request; None: no request. Cheap enough for every step."""
        if self._received is None:
            self._received = _from_launcher(self._parent)
        return self._received

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._received == "SIGINT":
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        for each in Signals._open:
            each._received = each._received or signal.Signals(number).name


def leave_code() -> int:
    """The exit code after `Interrupted`; `engine.launch` is notified by a file, and exits with 75."""
    folder = os.environ.get(LAUNCHED)
    if folder is None:
        return Interrupted.exit_code
    Path(folder, "saved").touch()
    return 0  # any other code would make torchrun restart the ranks


def mistake_code(code: int) -> int:
    """The exit code `code` after a user error; `engine.launch` is notified too."""
    folder = os.environ.get(LAUNCHED)
    if folder is not None:
        with suppress(OSError):
            Path(folder, "mistake").write_text(str(code))
    return code


def _from_launcher(parent: int) -> str | None:
    folder = os.environ.get(LAUNCHED)
    if folder is not None and os.path.exists(os.path.join(folder, "stop")):
        return Path(folder, "stop").read_text() or "the launcher"
    if "TORCHELASTIC_RUN_ID" in os.environ and os.getppid() != parent:
        return "the end of torchrun"
    return None
