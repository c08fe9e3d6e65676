"""OpenVINO, one program per shape of the same graph."""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from tetravit.runtimes.base import (
    LARGEST,
    SMALLEST,
    Backend,
    CannotRun,
    Keepable,
    Outputs,
    PerShape,
    Runner,
    Source,
    Way,
    images_of,
    needs,
)

PRECISION = {torch.float32: "f32", torch.bfloat16: "bf16"}


def build(source: Source) -> Runner:
    if source.example.dtype not in PRECISION:
        raise CannotRun(f"OpenVINO computes in float32 or bfloat16; got {source.example.dtype}")
    return _Runner(source)


class _Runner(Keepable):
    """Runs each part of a batch as a request of its own.

    A kept program is what OpenVINO exports for processors: its graph after transformations as XML, and the weights.
    It holds no machine code; kernels are generated when it is read.
    """

    def __init__(self, source: Source) -> None:
        import openvino

        self._core = openvino.Core()
        self._graphs, self._way = source.graphs, source.way
        self._precision = PRECISION[source.example.dtype]
        self._busy = Lock()
        self._programs = PerShape(self._compile)

    def __call__(self, images: Tensor) -> Outputs:
        with self._busy:
            program = self._programs(images.shape)
            parts = images.float().contiguous().chunk(len(program.requests))
            with ExitStack() as started:  # wait for all of them, also if one raises
                for request, part in zip(program.requests, parts, strict=True):
                    request.start_async({0: part.numpy()}, share_inputs=True)
                    started.callback(request.wait)
            tensors = [
                torch.cat(
                    [torch.from_numpy(request.get_output_tensor(i).data) for request in program.requests]
                )
                for i in range(program.outputs)
            ]
        return tensors[0] if len(tensors) == 1 else tensors

    def restore(self, shape: Sequence[int]) -> bool:
        content = self._graphs.programs.read(self._name(shape))
        if content is None:
            return False
        try:
            program = self._core.import_model(content, "CPU", self._settings(shape))
        except Exception:  # any error of OpenVINO: the graph is compiled again
            return False
        self._programs.add(shape, _Program(program, parts_of(shape[0], self._way)))
        return True

    def keep(self, shape: Sequence[int]) -> None:
        exported = self._programs(shape).compiled.export_model()
        content = exported if isinstance(exported, bytes) else exported.getvalue()
        self._graphs.programs.keep(self._name(shape), content)

    def _compile(self, shape: Sequence[int]) -> "_Program":
        parts = parts_of(shape[0], self._way)
        graph = self._graphs.of(images_of(shape))
        model = self._core.read_model(str(graph) if isinstance(graph, Path) else graph)
        model.reshape([shape[0] // parts, *shape[1:]])
        return _Program(self._core.compile_model(model, "CPU", self._settings(shape)), parts)

    def _settings(self, shape: Sequence[int]) -> dict[str, Any]:
        return {
            "INFERENCE_NUM_THREADS": self._way.threads,
            "NUM_STREAMS": parts_of(shape[0], self._way),
            "INFERENCE_PRECISION_HINT": self._precision,
        }

    def _name(self, shape: Sequence[int]) -> str:
        threads, parts = self._way.threads, parts_of(shape[0], self._way)
        return f"{'x'.join(map(str, shape))}-{threads}t{parts}p-{self._precision}.openvino"


class _Program:
    """A compiled program, and a request for each part of a batch."""

    def __init__(self, compiled: Any, parts: int) -> None:
        self.compiled, self.outputs = compiled, len(compiled.outputs)
        self.requests = [compiled.create_infer_request() for _ in range(parts)]


def streams(batch: int, threads: int) -> int:
    """Into how many equal parts a batch goes: as many as can have equal numbers of threads.

    Threads with images of their own need no synchronization: a batch takes 2 to 9 % less time.
    """
    return math.gcd(batch, threads)


def parts_of(batch: int, way: Way) -> int:
    """Into how many parts a batch goes."""
    return streams(batch, way.threads) if way.split else 1


def ways(batch: int, threads: int, free: int) -> Sequence[Way]:
    """Parts of equal size where every thread has a core of its own.

    Where others use some of the cores, parts wait for the slowest: then also the whole batch over all threads, which
    divide the work as it comes, and no more threads than free cores.
    """
    quiet = Way(threads)
    if free >= threads:
        return (quiet,)
    whole = Way(threads, split=False)
    shared = [whole, Way(free), *([quiet] if parts_of(batch, quiet) > 1 else [])]
    return tuple(dict.fromkeys(shared))


BACKENDS = {
    "openvino": Backend(
        build,
        lambda: needs("openvino", "openvino") or needs("onnxscript", "openvino"),
        smallest=SMALLEST,
        largest=LARGEST,
        compared=True,
        ways=ways,
        parts=parts_of,
    )
}
