"""ONNX Runtime, on a graph for every batch and size."""

from pathlib import Path

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
    images_of,
    needs,
)


def build(source: Source) -> Runner:
    import onnxruntime

    if source.example.dtype != torch.float32:
        raise CannotRun("ONNX Runtime runs float32 on processors")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = source.way.threads
    options.add_session_config_entry("session.force_spinning_stop", "1")  # between calls others compute
    options.log_severity_level = 3

    def start(shape: tuple[int, ...]) -> onnxruntime.InferenceSession:
        graph = source.graphs.of(images_of(shape))
        file = str(graph) if isinstance(graph, Path) else graph
        return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    sessions = PerShape(start)  # type: ignore[arg-type]
    one_for_all = None if source.graphs.one_size else start(tuple(source.example.shape))

    def run(images: Tensor) -> Outputs:
        session = one_for_all or sessions((1, *images.shape[1:]))
        name = session.get_inputs()[0].name
        outputs = [torch.from_numpy(x) for x in session.run(None, {name: images.contiguous().numpy()})]
        return outputs[0] if len(outputs) == 1 else outputs

    return run


BACKENDS = {
    "onnxruntime": Backend(
        build,
        lambda: needs("onnxruntime", "onnx") or needs("onnxscript", "onnx"),
        smallest=SMALLEST,
        largest=LARGEST,
        compared=True,
    )
}
