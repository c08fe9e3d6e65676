"""Counters of a server in the text format of Prometheus."""

import os
import threading
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
IMAGES = (1, 2, 4, 8, 16, 32, 64)

Labels = tuple[tuple[str, str], ...]


class Histogram:
    """How many values lie at or below each bound, and their sum."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds, self.counts, self.total = bounds, [0] * (len(bounds) + 1), 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


class Metrics:
    """What a server counts. Any thread may add."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: dict[Labels, int] = defaultdict(int)
        self._durations: dict[Labels, Histogram] = defaultdict(lambda: Histogram(SECONDS))
        self._batches: dict[Labels, Histogram] = defaultdict(lambda: Histogram(IMAGES))
        self._model_s: dict[Labels, float] = defaultdict(float)

    def request(self, route: str, status: int, seconds: float) -> None:
        """A response."""
        with self._lock:
            self._requests[(("route", route), ("status", str(status)))] += 1
            self._durations[(("route", route),)].add(seconds)

    def call(self, model: str, images: int, seconds: float) -> None:
        """A call of a model."""
        with self._lock:
            self._batches[(("model", model),)].add(images)
            self._model_s[(("model", model),)] += seconds

    def image_s(self) -> float:
        """Seconds of an image so far, over all models; 0 before the first."""
        with self._lock:
            images = sum(h.total for h in self._batches.values())
            return sum(self._model_s.values()) / images if images else 0.0

    def text(self, gauges: Mapping[str, Mapping[Labels, float]]) -> str:
        """All counters and the gauges (name -> labels -> value) as Prometheus takes them."""
        lines: list[str] = []
        with self._lock:
            _simple(lines, "tetravit_requests_total", "counter", "Responses.", self._requests)
            _spread(lines, "tetravit_request_seconds", "From a request to its response.", self._durations)
            _spread(lines, "tetravit_call_images", "Images per call of a model.", self._batches)
            _simple(
                lines, "tetravit_model_seconds_total", "counter", "Time in calls of a model.", self._model_s
            )
        for name, values in gauges.items():
            _simple(lines, name, "gauge", "", values)
        memory = resident_bytes()
        if memory is not None:
            _simple(lines, "process_resident_memory_bytes", "gauge", "Resident memory.", {(): memory})
        return "\n".join(lines) + "\n"


def resident_bytes() -> int | None:
    """Memory of this process in bytes; None where the system does not report it."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def _simple(lines: list[str], name: str, kind: str, about: str, values: Mapping[Labels, float]) -> None:
    if about:
        lines.append(f"# HELP {name} {about}")
    lines.append(f"# TYPE {name} {kind}")
    lines.extend(f"{name}{_labels(labels)} {_number(value)}" for labels, value in values.items())


def _spread(lines: list[str], name: str, about: str, values: Mapping[Labels, Histogram]) -> None:
    lines += [f"# HELP {name} {about}", f"# TYPE {name} histogram"]
    for labels, histogram in values.items():
        total = 0
        for bound, count in zip((*map(str, histogram.bounds), "+Inf"), histogram.counts, strict=True):
            total += count
            lines.append(f"{name}_bucket{_labels((*labels, ('le', bound)))} {total}")
        lines.append(f"{name}_sum{_labels(labels)} {_number(histogram.total)}")
        lines.append(f"{name}_count{_labels(labels)} {total}")


def _labels(labels: Labels) -> str:
    escaped = ((k, v.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")) for k, v in labels)
    inside = ",".join(f'{key}="{value}"' for key, value in escaped)
    return f"{{{inside}}}" if inside else ""


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:.6f}"
