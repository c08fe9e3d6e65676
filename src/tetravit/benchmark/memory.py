"""How much memory a call needs."""

import ctypes
import gc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

MIB = 2**20


def peak_mib(call: Callable[[], object], device: torch.device) -> float:
    """Memory in MiB at the highest point of a call, above what was in use before it; of two calls, the second.

    On a GPU what the allocator hands out; on a CPU the resident memory of this process, which Linux lets us
    reset. Elsewhere NaN.
    """
    call()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / MIB
    if device.type != "cpu" or not Path("/proc/self/clear_refs").exists():
        return float("nan")
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # give freed memory back, so that taking it again is seen
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    except OSError:
        return float("nan")
    resident = _status("VmRSS")
    call()
    return max(0.0, _status("VmHWM") - resident)


def peak_so_far_mib(device: torch.device) -> float:
    """The most memory in MiB that this process has had in use at once, with all it loaded; NaN where unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MIB
    return _status("VmHWM") if device.type == "cpu" and Path("/proc/self/status").exists() else float("nan")


def _status(key: str) -> float:
    """A line of /proc/self/status, in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) / 1024
    return float("nan")
