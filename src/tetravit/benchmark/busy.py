"""Processes that keep cores busy while something is measured beside them."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

LOOP = """
import os
while os.getppid() == {parent}:  # ends when the process that started it has ended
    for _ in range(1_000_000):
        pass
"""


@contextmanager
def busy(cores: int) -> Iterator[list[int]]:
    """Keep a number of cores busy during the block, each by a process; yields the process ids."""
    code = LOOP.format(parent=os.getpid())
    started: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(cores):
            started.append(subprocess.Popen([sys.executable, "-c", code]))
        yield [process.pid for process in started]
    finally:
        for process in started:
            process.kill()
        for process in started:
            process.wait()
