"""OpenVINO, one program per shape of the same graph."""

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
    needs,
)

PRECISION = {torch.float32: "f32", torch.bfloat16: "bf16"}


def build(source: Source) -> Runner:
    import openvino

    dtype = source.example.dtype
    if dtype not in PRECISION:
        raise CannotRun(f"OpenVINO computes in float32 or bfloat16; got {dtype}")
    graph = openvino.Core().read_model(source.onnx)
    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": PRECISION[dtype],
    }
    core = openvino.Core()
    single = len(graph.outputs) == 1

    def compile(shape: tuple[int, ...]) -> openvino.InferRequest:
        fixed = graph.clone()
        fixed.reshape(openvino.PartialShape(list(shape)))
        return core.compile_model(fixed, "CPU", settings).create_infer_request()

    programs = PerShape(compile)  # type: ignore[arg-type]

    def run(images: Tensor) -> Outputs:
        request = programs(images.shape)
        request.infer({0: images.float().contiguous().numpy()}, share_inputs=True)
        count = 1 if single else len(graph.outputs)
        found = [torch.from_numpy(request.get_output_tensor(i).data.copy()) for i in range(count)]
        return found[0] if single else found

    return run


BACKENDS = {
    "openvino": Backend(
        build,
        lambda: needs("openvino", "openvino") or needs("onnxscript", "openvino"),
        smallest=SMALLEST,
        largest=LARGEST,
        compared=True,
    )
}
