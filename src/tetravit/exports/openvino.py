"""OpenVINO, from the same graph as ONNX."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tetravit.exports.base import KEY, Graph, Run, Target
from tetravit.runtimes.base import needs, onnx_form


class OpenVINO(Target):
    """.xml with .bin beside it; "tetravit" of the run-time information says what it holds, each value as JSON.

    float16 is what weights are kept in; OpenVINO computes in what suits the processor. int8: see parts/int8.py.
    """

    suffix = ".xml"
    beside = (".bin",)
    dtypes = ("float32", "float16", "int8")
    packages = ("openvino",)

    def ready(self) -> str:
        return needs("openvino", "openvino") or needs("onnxscript", "openvino")

    def write(self, graph: Graph, path: Path) -> None:
        import openvino

        form = onnx_form(graph.program, graph.inputs, graph.outputs)
        model = openvino.Core().read_model(form.SerializeToString())
        for name, value in graph.facts.items():
            model.set_rt_info(json.dumps(value), [KEY, name])
        openvino.save_model(model, path, compress_to_fp16=graph.dtype == "float16")

    def load(self, path: Path) -> Run:
        import openvino

        settings = {
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
        }
        compiled = openvino.Core().compile_model(path, "CPU", settings)
        count = len(compiled.outputs)

        def run(inputs: Sequence[Tensor]) -> Sequence[Tensor]:
            outputs = compiled({i: x.contiguous().numpy() for i, x in enumerate(inputs)})
            return [torch.from_numpy(outputs[i].copy()) for i in range(count)]

        return run

    def facts(self, path: Path) -> dict[str, Any]:
        import openvino

        try:
            rows = openvino.Core().read_model(path).get_rt_info([KEY]).value
            return {name: json.loads(getattr(row, "value", row)) for name, row in rows.items()}
        except Exception as error:  # OpenVINO's are plain RuntimeErrors
            raise ValueError(f"{path} is no OpenVINO file that `tetravit export` wrote.") from error


TARGETS = {"openvino": OpenVINO()}
