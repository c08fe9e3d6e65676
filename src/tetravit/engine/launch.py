"""torchrun, and around it what a scheduler needs: signals reach the ranks once, and the exit code says what happened.

torchrun alone passes on neither: it leaves ranks behind that train on when a signal ends it, starts ranks again that
were asked to stop, and leaves with 1 where a run was saved and can continue.
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
    """The text of a small file; "" where there is none."""
    try:
        return file.read_text()
    except OSError:
        return ""


def launch(options: Sequence[str], command: Sequence[str]) -> int:
    """Run `tetravit COMMAND` on the processes that torchrun starts; returns the exit code.

    options: of torchrun. A signal (SIGTERM, SIGINT, SIGUSR1) to this process makes all ranks finish their step, save
    and leave; the code is then 75, which schedulers read as "try again". After a mistake of the user it is 2.
    """
    with tempfile.TemporaryDirectory(prefix="tetravit_") as folder:

        def stop(number: int, frame: FrameType | None) -> None:
            if not Path(folder, "stop").exists():
                with contextlib.suppress(OSError):
                    replace_file(Path(folder, "stop"), signal.Signals(number).name.encode())

        numbers = [getattr(signal, name) for name in STOPPING if hasattr(signal, name)]
        before = {number: signal.signal(number, stop) for number in numbers}

        def apart() -> None:
            """In the child: torchrun itself ends by the death of this process, and by no other signal."""
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
                code = int(text)  # torchrun's own is 1, on which schedulers would try again
        finally:
            for number, handler in before.items():  # what comes now changes nothing any more
                signal.signal(number, signal.SIG_IGN if Path(folder, "stop").exists() else handler)
    return Interrupted.exit_code if saved else code
