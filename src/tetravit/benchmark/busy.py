"""Processes that keep cores busy while something is measured beside them."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

LOOP = """
import os
while os.getppid() == {parent}:  # ends with the process that started it, however that ends
    for _ in range(1_000_000):
        pass
"""


@contextmanager
def busy(cores: int) -> Iterator[list[int]]:
    """Keep so many cores busy inside the block, each by a process; yields their ids. They end with the block."""
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
