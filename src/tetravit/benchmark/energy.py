"""Energy counters: Intel's and AMD's processors by RAPL, NVIDIA's GPUs by NVML."""

import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

POWERCAP = Path("/sys/class/powercap")
PACKAGE = re.compile(r"intel-rapl:\d+")  # a processor; its parts ("intel-rapl:0:1") are counted in it

Joules = Callable[[], float]


def joules(device: torch.device, powercap: Path = POWERCAP) -> Joules | None:
    """A counter of the joules used from now on: by all processors, or by one GPU.

    None: not available on this system (on Linux only root can read the counters).
    """
    if device.type == "cpu":
        return _Rapl.detect(powercap)
    return _of_gpu(device) if device.type == "cuda" else None


class _Rapl:
    """Counters of microjoules, one per processor, which wrap to 0 after their range."""

    def __init__(self, folders: list[Path]) -> None:
        self.files = [folder / "energy_uj" for folder in folders]
        self.ranges = [_number(folder / "max_energy_range_uj") for folder in folders]
        self.last = [_number(file) for file in self.files]
        self.total = 0

    @classmethod
    def detect(cls, powercap: Path) -> "_Rapl | None":
        folders = sorted(folder for folder in powercap.glob("*") if PACKAGE.fullmatch(folder.name))
        with suppress(OSError, ValueError):
            folders = [
                f for f in folders if not (f / "name").read_text().startswith("psys")
            ]  # includes the others
            return cls(folders) if folders else None
        return None

    def __call__(self) -> float:
        now = [_number(file) for file in self.files]
        for new, old, most in zip(now, self.last, self.ranges, strict=True):
            self.total += new - old if new >= old else new - old + most
        self.last = now
        return self.total / 1e6


def _of_gpu(device: torch.device) -> Joules | None:
    """The energy counter of the GPU, in steps of 1 mJ; without one, the integral of its power."""
    try:
        import pynvml  # type: ignore[import-not-found]

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
    except Exception:  # no such package, no such driver, a part of a GPU: not available
        return None
    for count in (
        lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3,
        _Power(lambda: pynvml.nvmlDeviceGetPowerUsage(handle) / 1e3),
    ):
        with suppress(pynvml.NVMLError):
            start = count()
            return lambda count=count, start=start: count() - start  # type: ignore[misc]
    return None


class _Power:
    """Joules from a power in watts, taken as constant between two readings."""

    def __init__(self, watts: Callable[[], float]) -> None:
        self.watts, self.total, self.last = watts, 0.0, time.perf_counter()

    def __call__(self) -> float:
        power, now = self.watts(), time.perf_counter()
        self.total += power * (now - self.last)
        self.last = now
        return self.total


def _number(file: Path) -> int:
    return int(file.read_text())
