"""The choice of the backend that runs a model, and of its threads, by measurement.

The likely winner is built first. It is compared with the eager model and, if other processes use some of the cores,
with itself in several settings of threads. Other backends are built only if it does not lead clearly.
"""

import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from tetravit import runtimes
from tetravit.runtimes.base import (
    Backend,
    CannotRun,
    Graphs,
    Keepable,
    Outputs,
    Runner,
    Source,
    Way,
    first_line,
    quiet,
)
from tetravit.runtimes.parts.compare import Compared, compare
from tetravit.runtimes.parts.load import Load, free_threads

ERROR = 2e-5  # allowed difference of float32 outputs, as a share of the largest
ERROR_16 = 0.1  # the same in other types
LIKELY = (
    "openvino",
    "onnxruntime",
    "eager",
)  # on processors, the usual winner first; rows: results/speed.jsonl
KNOWN = ("x86_64", "amd64")  # machines on which ONNX Runtime led OpenVINO in no row of results/speed.jsonl
CLEAR = 1.15  # lead over eager from which the usual winner is not compared with ONNX Runtime


@dataclass(frozen=True)
class Candidate:
    """A backend, and how it uses the processor."""

    backend: str
    way: Way


@dataclass(frozen=True)
class Choice:
    """A chosen candidate, and the measurement behind it.

    parts: number of equal parts of the measured batch. seconds: median time of a call of each candidate, by its
    label. best_s: that of the chosen one; None: not measured. others: cores that other processes used.
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
    """Builds and compares the candidates for one model in one type.

    model: images -> tensors, in the type of the computation. graphs: its ONNX graphs. names: available backends, the
    likely fastest first. load: of the machine.
    """

    def __init__(self, model: nn.Module, graphs: Graphs, names: Sequence[str], load: Load) -> None:
        self.model, self.graphs, self.names, self.load = model, graphs, list(names), load
        self.left_out: dict[str, str] = {}
        self.restored: Candidate | None = None  # whose program was read from the cache
        self._runners: dict[Candidate, Runner] = {}
        self._reference: tuple[Tensor, Outputs] | None = None  # images, and outputs of the plain model

    def runner(self, candidate: Candidate, example: Tensor, *, restore: bool = False) -> Runner:
        """The function of images of this candidate; built, and its outputs checked on `example`, if it is new.

        restore: take its kept program, if there is one. The outputs of that were checked before it was kept.

        Raises:
            CannotRun: for any error of the backend, of whatever type, or if its outputs differ.
        """
        if candidate not in self._runners:
            row = runtimes.BACKENDS[candidate.backend]
            with quiet():
                try:
                    runner = row.build(Source(self.model, example, candidate.way, self.graphs))
                    if restore and isinstance(runner, Keepable) and runner.restore(example.shape):
                        self.restored = candidate
                    else:
                        check(runner(example), self._plain(example))
                except CannotRun:
                    raise
                except Exception as error:
                    raise CannotRun(first_line(error)) from error
            self._runners[candidate] = runner
        return self._runners[candidate]

    def keep_program(self, candidate: Candidate, example: Tensor) -> None:
        """Keep the compiled program of a candidate that has run on `example`, if its backend can."""
        runner = self._runners[candidate]
        if isinstance(runner, Keepable):
            with quiet(), suppress(Exception):  # any error of the backend: the next start compiles again
                runner.keep(example.shape)

    def _plain(self, example: Tensor) -> Outputs:
        """The outputs of the plain model, computed once for all candidates."""
        if self._reference is None or self._reference[0] is not example:
            self._reference = example, run_plain(self.model, example)
        return self._reference[1]

    def choose(self, example: Tensor) -> Choice:
        """Compare the candidates on images, and keep the fastest.

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
        compared = self._measured(tried, usual, example)
        later = [name for name in rest if name not in early]
        if later and not self._is_clear(compared, usual):
            tried += self._able(later, example, others)
            compared = self._measured(tried, usual, example)
        return self._chosen(compared, example, others)

    def compare_again(self, current: Candidate, example: Tensor) -> Choice:
        """Compare the present choice with its other settings, the eager model, and the usual winner."""
        others = self.load.others()
        names = dict.fromkeys((self.names[0], current.backend, *(n for n in self.names if n == "eager")))
        tried = [current, *self._able(names, example, others)]
        return self._chosen(self._measured(tried, current, example), example, others)

    def can_run(self, candidate: Candidate, example: Tensor) -> bool:
        """Build a candidate that was chosen earlier; returns whether it can run."""
        if candidate.backend not in self.names:
            return False
        try:
            self.runner(candidate, example, restore=True)
        except CannotRun:
            return False
        finally:
            self._reference = None
        return True

    def _able(self, names: Iterable[str], example: Tensor, others: float) -> Iterator[Candidate]:
        """The candidates of these backends that can run the model, each built when the iterator reaches it."""
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

    def _is_clear(self, compared: Compared[Candidate], usual: Candidate) -> bool:
        """Whether the usual winner leads eager so clearly that ONNX Runtime is not worth building."""
        known = platform.machine().lower() in KNOWN and usual.backend == LIKELY[0]
        eager = [ratio for one, ratio in compared.ratios.items() if one.backend == "eager"]
        return known and compared.best.backend == usual.backend and bool(eager) and max(eager) * CLEAR <= 1

    def _chosen(self, compared: Compared[Candidate], example: Tensor, others: float) -> Choice:
        """The choice; the other runners are released, except eager, which has no weights of its own."""
        best, self._reference = compared.best, None
        self._runners = {c: r for c, r in self._runners.items() if c == best or c.backend == "eager"}
        names = [candidate.backend for candidate in compared.seconds]
        seconds: dict[str, float] = {}
        for candidate, time in compared.seconds.items():
            parts = runtimes.BACKENDS[candidate.backend].parts(len(example), candidate.way)
            several = names.count(candidate.backend) > 1
            seconds[label(candidate, parts) if several else candidate.backend] = time
        parts = runtimes.BACKENDS[best.backend].parts(len(example), best.way)
        return Choice(best, parts, seconds, compared.seconds.get(best), others)


def in_likely_order(names: Iterable[str]) -> list[str]:
    """Backends, the usual winner first and eager last; backends of other packages stand between."""
    place = {name: i for i, name in enumerate(LIKELY)}
    return sorted(names, key=lambda name: place.get(name, len(LIKELY) - 1.5))


def unfit(row: Backend, device: torch.device) -> str:
    """The reason why a backend cannot run on a device; "" if it can."""
    if device.type not in row.devices:
        return f"it runs on {' or '.join(row.devices)}, not on {device.type}"
    return row.ready()


def run_plain(model: Runner, images: Tensor) -> Outputs:
    with torch.inference_mode():
        return model(images)


def difference(outputs: Outputs, plain: Outputs) -> float:
    """The largest difference of outputs, as a share of the largest output, 1 at least."""
    pairs = [(outputs, plain)] if isinstance(outputs, Tensor) else list(zip(outputs, plain, strict=True))
    errors = []
    for got, wanted in pairs:
        assert isinstance(got, Tensor)
        assert isinstance(wanted, Tensor)
        scale = wanted.float().abs().max().clamp(min=1)
        errors.append((got.float() - wanted.float()).abs().max() / scale)
    return torch.stack(errors).max().item()  # NaN stays NaN


def check(outputs: Outputs, plain: Outputs) -> None:
    """Raises: CannotRun if the outputs differ from those of the plain model."""
    first = plain if isinstance(plain, Tensor) else plain[0]
    limit = ERROR if first.dtype == torch.float32 else ERROR_16
    error = difference(outputs, plain)
    if not error <= limit:
        raise CannotRun(f"its outputs differ by {error:.1e} of the largest, more than {limit:g}")
