"""Memory that a step frees serves the next step.

glibc gives large freed blocks back to the system, and the next step takes them again page by page: a tenth of a
training step on a processor. In a run the process keeps them; afterwards they go back.
"""

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

# Numbers of glibc's malloc.h, and the values between which it adapts by itself.
TRIM, MAP = -1, -3
USUAL_TRIM, USUAL_MAP = 2**26, 2**25  # bytes
NEVER, LARGEST = 2**31 - 1, 2**30


@contextmanager
def freed_memory_kept(device: torch.device) -> Iterator[None]:
    """Keep freed memory in the process inside the context, on a CPU with glibc; elsewhere nothing changes."""
    library: Any = ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
    if device.type != "cpu" or library is None:
        yield
        return
    library.mallopt(TRIM, NEVER)
    if not library.mallopt(MAP, LARGEST):  # more than older versions take
        library.mallopt(MAP, USUAL_MAP)
    try:
        yield
    finally:
        library.mallopt(TRIM, USUAL_TRIM)
        library.mallopt(MAP, USUAL_MAP)
        library.malloc_trim(0)
