"""Time per step of each rank, its share of waiting for images, and memory: to find stragglers."""

import sys
import time

import torch


class Waits:
    """A context around waiting for images."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._start = device, time.perf_counter()
        self._waiting = self._began = 0.0

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self._waiting += time.perf_counter() - self._began

    def take(self, steps: int) -> dict[str, float]:
        """Per step since the last call: total seconds, and seconds waiting for images; memory in MiB."""
        now, steps = time.perf_counter(), max(steps, 1)
        whole, data = (now - self._start) / steps, self._waiting / steps
        self._start, self._waiting = now, 0.0
        return {
            "step_s": round(whole, 4),
            "data_s": round(data, 4),
            "memory_mib": round(memory_mib(self._device)),
        }


def memory_mib(device: torch.device) -> float:
    """Peak memory: of tensors on a GPU, else of this process; 0 if the system does not report it."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
