"""torchrun with the exit codes of a run: signals reach each rank once, and the exit code states the outcome.

torchrun alone provides neither: on a signal it leaves ranks running, it restarts ranks that were requested to stop,
and it exits with 1 if a run was saved and can continue.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from tetravit.engine.signals import LAUNCHED, STOPPING, Interrupted
from tetravit.files import replace_file

PR_SET_PDEATHSIG = 1  # Linux


def _text(file: Path) -> str:
    """The text of a small file; "" if it does not exist."""
    try:
        return file.read_text()
    except OSError:
        return ""


def launch(options: Sequence[str], command: Sequence[str]) -> int:
    """Run `tetravit COMMAND` in the processes started by torchrun; returns the exit code.

    options: of torchrun. A signal (SIGTERM, SIGINT, SIGUSR1) to this process makes all ranks finish their step, save
    and exit; the code is then 75, which schedulers treat as "try again". After a user error it is 2.
    """
    with tempfile.TemporaryDirectory(prefix="tetravit_") as folder:

        def stop(number: int, frame: FrameType | None) -> None:
            if not Path(folder, "stop").exists():
                with contextlib.suppress(OSError):
                    replace_file(Path(folder, "stop"), signal.Signals(number).name.encode())

        numbers = [getattr(signal, name) for name in STOPPING if hasattr(signal, name)]
        before = {number: signal.signal(number, stop) for number in numbers}

        def apart() -> None:
            """In the child: torchrun ends when this process dies, and ignores other signals."""
            for number in numbers:
                signal.signal(number, signal.SIG_IGN)
            with contextlib.suppress(OSError, AttributeError):
                ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGQUIT)

        torchrun = [sys.executable, "-m", "torch.distributed.run", "--signals-to-handle", "SIGQUIT"]
        child = subprocess.Popen(
            [*torchrun, *options, "-m", "tetravit", *command],
            env={**os.environ, LAUNCHED: folder},
            start_new_session=True,
            preexec_fn=apart,
        )
        try:
            code = child.wait()
            saved = Path(folder, "saved").exists()
            if code and not saved and (text := _text(Path(folder, "mistake"))):
                code = int(text)  # torchrun would exit with 1, and schedulers would retry
        finally:
            for number, handler in before.items():  # later signals have no effect
                signal.signal(number, signal.SIG_IGN if Path(folder, "stop").exists() else handler)
    return Interrupted.exit_code if saved else code
