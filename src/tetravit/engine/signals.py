"""A request to stop: finish the step, save, leave with a line that says how to go on.

It comes as a signal to this process, as a file of `engine.launch`, or by the death of the process that started the
ranks. Requests may come in any number: the first counts.
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
    "TETRAVIT_LAUNCHED"  # folder of the launcher: it writes `stop` there, ranks that have saved write `saved`
)


class Interrupted(Exception):
    """A run was stopped by a signal after saving; the text names the command that continues it.

    Programs that end because of it exit with code 75, which schedulers read as "try again".
    """

    exit_code = 75


class Signals:
    """Notes requests to stop while it is entered. A second SIGINT ends the process at once.

    Inside another one it begins with the request that the outer one has noted. Outside the main thread Python cannot
    handle signals: there it notes none.

    names: the signals. ignore_after: once there was a request, signals are ignored from here to the end of the
    process, so that a storm of them changes neither what is left behind nor the exit code.
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
        """What asked this process to stop; None: nothing has. Cheap enough for every step."""
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
    """The exit code after `Interrupted`; `engine.launch` is informed in another way, and leaves with 75."""
    folder = os.environ.get(LAUNCHED)
    if folder is None:
        return Interrupted.exit_code
    Path(folder, "saved").touch()
    return 0  # any other code would make torchrun start the ranks again


def mistake_code(code: int) -> int:
    """The exit code `code` after a mistake of the user, of which `engine.launch` is informed too."""
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
