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
    import openvino

    dtype, way = source.example.dtype, source.way
    if dtype not in PRECISION:
        raise CannotRun(f"OpenVINO computes in float32 or bfloat16; got {dtype}")
    core = openvino.Core()
    read = [_read(core, source, source.example)]  # for the first program
    outputs, sides = len(read[0].outputs), tuple(source.example.shape[2:])

    def compile(shape: tuple[int, ...]) -> list[openvino.InferRequest]:
        """As many requests as parts of the batch run side by side."""
        parts = parts_of(shape[0], way)
        settings = {
            "INFERENCE_NUM_THREADS": way.threads,
            "NUM_STREAMS": parts,
            "INFERENCE_PRECISION_HINT": PRECISION[dtype],
        }
        fixed = read.pop() if read and shape[2:] == sides else _read(core, source, images_of(shape))
        fixed.reshape(openvino.PartialShape([shape[0] // parts, *shape[1:]]))
        program = core.compile_model(fixed, "CPU", settings)
        return [program.create_infer_request() for _ in range(parts)]

    busy = Lock()
    programs = PerShape(compile)  # type: ignore[arg-type]

    def run(images: Tensor) -> Outputs:
        with busy:
            requests = programs(images.shape)
            parts = images.float().contiguous().chunk(len(requests))
            with ExitStack() as started:  # wait for all of them, also if one raises
                for request, part in zip(requests, parts, strict=True):
                    request.start_async({0: part.numpy()}, share_inputs=True)
                    started.callback(request.wait)
            tensors = [
                torch.cat([torch.from_numpy(request.get_output_tensor(i).data) for request in requests])
                for i in range(outputs)
            ]
        return tensors[0] if outputs == 1 else tensors

    return run


def _read(core: Any, source: Source, example: Tensor) -> Any:
    """The graph for such images; it is not held in memory once it is compiled."""
    graph = source.graphs.of(example)
    return core.read_model(str(graph) if isinstance(graph, Path) else graph)


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
