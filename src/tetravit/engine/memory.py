"""Reuse the memory freed by a step in the next step.

glibc returns large freed blocks to the system, and the next step allocates them again page by page: a tenth of the
time of a training step on a CPU. During a run the process keeps them.
"""

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

# Constants of glibc's malloc.h, and the range of its dynamic thresholds.
TRIM, MAP = -1, -3
USUAL_TRIM, USUAL_MAP = 2**26, 2**25  # bytes
NEVER, LARGEST = 2**31 - 1, 2**30


@contextmanager
def freed_memory_kept(device: torch.device) -> Iterator[None]:
    """Keep freed memory in the process inside the context, on a CPU with glibc; elsewhere no effect."""
    library: Any = ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
    if device.type != "cpu" or library is None:
        yield
        return
    library.mallopt(TRIM, NEVER)
    if not library.mallopt(MAP, LARGEST):  # above the maximum of older versions
        library.mallopt(MAP, USUAL_MAP)
    try:
        yield
    finally:
        library.mallopt(TRIM, USUAL_TRIM)
        library.mallopt(MAP, USUAL_MAP)
        library.malloc_trim(0)
