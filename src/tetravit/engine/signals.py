"""Asked to stop: finish the step, save, leave with a line that says how to go on."""

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Self

WATCHED = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)]


class Interrupted(Exception):
    """A run was stopped from outside after saving; the text is the line that says how to continue.

    Programs that end because of it exit with code 75, which schedulers read as "try again".
    """

    exit_code = 75


class Signals:
    """Notes SIGTERM, SIGINT and SIGUSR1 while it is entered. A second SIGINT ends the process at once.

    Outside the main thread Python cannot watch signals: there it notes nothing.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in WATCHED}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received == "SIGINT":
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        self.received = signal.Signals(number).name
