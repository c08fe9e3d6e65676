"""How much memory a call needs."""

import ctypes
import gc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch

MIB = 2**20


class Peaks(NamedTuple):
    """Peak memory during a call in MiB: above that in use before it (`call`), and of the whole process (`process`).

    On a GPU the memory of this process on it: weights, programs and call.
    """

    call: float
    process: float


def peak_mib(call: Callable[[], object], device: torch.device) -> float:
    """Peak memory in MiB during the second of two calls, above that in use before it.

    On a GPU the memory that the allocator has given out; on a CPU the resident memory of this process, whose peak
    Linux can reset. Elsewhere NaN.
    """
    return peaks(call, device).call


def peaks(call: Callable[[], object], device: torch.device) -> Peaks:
    """Peak memory of the second of two calls; NaN on systems that do not report it."""
    call()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        peak = torch.cuda.max_memory_allocated(device)
        return Peaks((peak - before) / MIB, peak / MIB)
    unknown = Peaks(float("nan"), float("nan"))
    if device.type != "cpu" or not Path("/proc/self/clear_refs").exists():
        return unknown
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # return freed memory, so that its reuse is counted
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    except OSError:
        return unknown
    resident = _status("VmRSS")
    call()
    highest = _status("VmHWM")
    return Peaks(max(0.0, highest - resident), highest)


def peak_so_far_mib(device: torch.device) -> float:
    """Peak memory of this process so far in MiB, libraries included; NaN if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MIB
    return _status("VmHWM") if device.type == "cpu" and Path("/proc/self/status").exists() else float("nan")


def _status(key: str) -> float:
    """A line of /proc/self/status, in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) / 1024
    return float("nan")
