"""ONNX Runtime, on a graph for every batch and size."""

import torch
from torch import Tensor

from tetravit.runtimes.base import LARGEST, SMALLEST, Backend, CannotRun, Outputs, Runner, Source, needs


def build(source: Source) -> Runner:
    import onnxruntime

    if source.example.dtype != torch.float32:
        raise CannotRun("ONNX Runtime runs float32 on processors")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = source.way.threads
    options.add_session_config_entry("session.force_spinning_stop", "1")  # between calls others compute
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(source.onnx, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    single = len(session.get_outputs()) == 1

    def run(images: Tensor) -> Outputs:
        found = [torch.from_numpy(x) for x in session.run(None, {name: images.contiguous().numpy()})]
        return found[0] if single else found

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
