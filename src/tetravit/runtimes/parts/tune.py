"""Which backend runs a model, and how it uses the processor: the choice among those that can.

The likely winner is built first. It is compared with the eager model and, where others use some of the cores, in
several ways of dividing the work. The remaining backends are built only where it does not lead clearly.
"""

import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from tetravit import runtimes
from tetravit.runtimes.base import Backend, CannotRun, Graphs, Outputs, Runner, Source, Way, first_line, quiet
from tetravit.runtimes.parts.compare import Compared, compare
from tetravit.runtimes.parts.load import Load, free_threads

ERROR = 2e-5  # of float32 outputs, as a share of the largest
ERROR_16 = 0.1  # the same of other types
LIKELY = ("openvino", "onnxruntime", "eager")  # on processors, the usual winner first: results/speed.jsonl
KNOWN = ("x86_64", "amd64")  # where ONNX Runtime was faster than OpenVINO for no model of results/speed.jsonl
CLEAR = 1.15  # times as fast as eager: there the usual winner is not compared with ONNX Runtime


@dataclass(frozen=True)
class Candidate:
    """A backend, and how it uses the processor."""

    backend: str
    way: Way


@dataclass(frozen=True)
class Choice:
    """What was chosen.

    parts: into which the images go that it was made for. seconds: of a call with them, of each candidate, by its
    label. best_s: the same of the one chosen; None: it was not measured. others: cores that other processes used.
    """

    candidate: Candidate
    parts: int
    seconds: Mapping[str, float] = field(default_factory=dict)
    best_s: float | None = None
    others: float = 0.0


def label(candidate: Candidate, parts: int) -> str:
    """A candidate in words: "openvino, 2 threads, 2 parts"."""
    threads = f"{candidate.way.threads} thread{'s' if candidate.way.threads > 1 else ''}"
    return f"{candidate.backend}, {threads}{f', {parts} parts' if parts > 1 else ''}"


class Tuner:
    """The candidates for one model in one type.

    model: images to tensors, in the type to compute in. graphs: the same as graphs. names: of the backends that are
    available, the likely best first. load: of the machine.
    """

    def __init__(self, model: nn.Module, graphs: Graphs, names: Sequence[str], load: Load) -> None:
        self.model, self.graphs, self.names, self.load = model, graphs, list(names), load
        self.left_out: dict[str, str] = {}
        self._runners: dict[Candidate, Runner] = {}

    def runner(self, candidate: Candidate, example: Tensor) -> Runner:
        """What runs the model so, built if need be, after a first call with `example`.

        Raises:
            CannotRun: for any error of the backend, whose exceptions are its own, or if its outputs are others.
        """
        if candidate not in self._runners:
            row = runtimes.BACKENDS[candidate.backend]
            with quiet():
                try:
                    runner = row.build(Source(self.model, example, candidate.way, self.graphs))
                    check(runner(example), run_plain(self.model, example))
                except CannotRun:
                    raise
                except Exception as error:
                    raise CannotRun(first_line(error)) from error
            self._runners[candidate] = runner
        return self._runners[candidate]

    def choose(self, example: Tensor) -> Choice:
        """Compare the candidates on images, and keep the best.

        Raises:
            CannotRun: if no backend can run the model.
        """
        others = self.load.others()
        usual = next(iter(self._able(self.names, example, others)), None)
        if usual is None:
            raise CannotRun(self.left_out[self.names[0]])
        rest = [name for name in self.names if name != usual.backend and name not in self.left_out]
        early = [name for name in rest if name == "eager"]
        tried = [usual, *self._able([usual.backend, *early], example, others)]
        found = self._measured(tried, usual, example)
        later = [name for name in rest if name not in early]
        if later and not self._is_clear(found, usual):
            tried += self._able(later, example, others)
            found = self._measured(tried, usual, example)
        return self._chosen(found, example, others)

    def look_again(self, current: Candidate, example: Tensor) -> Choice:
        """Compare the current choice with its other ways, the eager model, and the usual winner."""
        others = self.load.others()
        names = dict.fromkeys((self.names[0], current.backend, *(n for n in self.names if n == "eager")))
        tried = [current, *self._able(names, example, others)]
        return self._chosen(self._measured(tried, current, example), example, others)

    def can_run(self, candidate: Candidate, example: Tensor) -> bool:
        """Build what was chosen before; returns whether it can run."""
        if candidate.backend not in self.names:
            return False
        try:
            self.runner(candidate, example)
        except CannotRun:
            return False
        return True

    def _able(self, names: Iterable[str], example: Tensor, others: float) -> Iterator[Candidate]:
        """The candidates of these backends that can run the model, each built when it is its turn."""
        threads = torch.get_num_threads()
        for name in names:
            ways = runtimes.BACKENDS[name].ways(len(example), threads, free_threads(threads, others))
            for way in ways:
                try:
                    self.runner(Candidate(name, way), example)
                except CannotRun as error:
                    self.left_out[name] = str(error)
                    break
                yield Candidate(name, way)

    def _measured(self, tried: Iterable[Candidate], usual: Candidate, example: Tensor) -> Compared[Candidate]:
        def call(runner: Runner) -> Callable[[], object]:
            def once() -> None:
                runner(example)
                if example.device.type == "cuda":
                    torch.cuda.synchronize(example.device)

            return once

        calls = {one: call(self._runners[one]) for one in dict.fromkeys(tried)}
        return compare(calls, usual) if len(calls) > 1 else Compared(usual)

    def _is_clear(self, found: Compared[Candidate], usual: Candidate) -> bool:
        """Whether the usual winner leads the eager model so clearly that ONNX Runtime would not be faster."""
        known = platform.machine().lower() in KNOWN and usual.backend == LIKELY[0]
        eager = [ratio for one, ratio in found.ratios.items() if one.backend == "eager"]
        return known and found.best.backend == usual.backend and bool(eager) and max(eager) * CLEAR <= 1

    def _chosen(self, found: Compared[Candidate], example: Tensor, others: float) -> Choice:
        """The choice; what lost is released, but for the eager model, which has no weights of its own."""
        best = found.best
        self._runners = {c: r for c, r in self._runners.items() if c == best or c.backend == "eager"}
        names = [candidate.backend for candidate in found.seconds]
        seconds: dict[str, float] = {}
        for candidate, time in found.seconds.items():
            parts = runtimes.BACKENDS[candidate.backend].parts(len(example), candidate.way)
            several = names.count(candidate.backend) > 1
            seconds[label(candidate, parts) if several else candidate.backend] = time
        parts = runtimes.BACKENDS[best.backend].parts(len(example), best.way)
        return Choice(best, parts, seconds, found.seconds.get(best), others)


def in_likely_order(names: Iterable[str]) -> list[str]:
    """Backends, the usual winner first; those of other packages before the eager model."""
    place = {name: i for i, name in enumerate(LIKELY)}
    return sorted(names, key=lambda name: place.get(name, len(LIKELY) - 1.5))


def unfit(row: Backend, device: torch.device) -> str:
    """Why a backend cannot run here; "" where it can."""
    if device.type not in row.devices:
        return f"it runs on {' or '.join(row.devices)}, not on {device.type}"
    return row.ready()


def run_plain(model: Runner, images: Tensor) -> Outputs:
    with torch.inference_mode():
        return model(images)


def difference(found: Outputs, plain: Outputs) -> float:
    """The largest difference of outputs, as a share of the largest."""
    pairs = [(found, plain)] if isinstance(found, Tensor) else list(zip(found, plain, strict=True))
    errors = []
    for got, wanted in pairs:
        assert isinstance(got, Tensor)
        assert isinstance(wanted, Tensor)
        scale = wanted.float().abs().max().clamp(min=1)
        errors.append((got.float() - wanted.float()).abs().max() / scale)
    return torch.stack(errors).max().item()  # NaN stays NaN


def check(found: Outputs, plain: Outputs) -> None:
    """Raises: CannotRun if the outputs are not those of the plain model."""
    first = plain if isinstance(plain, Tensor) else plain[0]
    limit = ERROR if first.dtype == torch.float32 else ERROR_16
    error = difference(found, plain)
    if not error <= limit:
        raise CannotRun(f"its outputs differ by {error:.1e} of the largest, more than {limit:g}")
