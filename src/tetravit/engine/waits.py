"""What each rank spends on a step: all of its time, the time without images, and memory. Stragglers show in it."""

import sys
import time

import torch


class Waits:
    """Entered while a rank waits for images."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._start = device, time.perf_counter()
        self._waiting = self._began = 0.0

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self._waiting += time.perf_counter() - self._began

    def take(self, steps: int) -> dict[str, float]:
        """Per step since the last call: seconds in all, and of them those without images; the memory in MiB."""
        now, steps = time.perf_counter(), max(steps, 1)
        whole, data = (now - self._start) / steps, self._waiting / steps
        self._start, self._waiting = now, 0.0
        return {
            "step_s": round(whole, 4),
            "data_s": round(data, 4),
            "memory_mib": round(memory_mib(self._device)),
        }


def memory_mib(device: torch.device) -> float:
    """The most memory so far: on a GPU of tensors, else of this process; 0 where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
