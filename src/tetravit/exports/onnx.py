"""ONNX, for ONNX Runtime and whatever else reads it."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from tetravit.exports.base import Graph, Run, Target
from tetravit.runtimes.base import needs, onnx_form


class Onnx(Target):
    """.onnx: one file for every batch, height and width; its metadata say what it holds, each value as JSON."""

    suffix = ".onnx"
    dtypes = ("float32", "float16")

    def ready(self) -> str:
        return needs("onnxscript", "onnx") or needs("onnxruntime", "onnx")

    def write(self, graph: Graph, path: Path) -> None:
        model = onnx_form(graph.program, graph.inputs, graph.outputs)
        opset = next(row.version for row in model.opset_import if row.domain in ("", "ai.onnx"))
        for name, value in {**graph.facts, "opset": opset}.items():
            model.metadata_props.add(key=name, value=json.dumps(value))
        path.write_bytes(model.SerializeToString())

    def load(self, path: Path) -> Run:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        names = [x.name for x in session.get_inputs()]

        def run(inputs: Sequence[Tensor]) -> Sequence[Tensor]:
            given = {name: x.contiguous().numpy() for name, x in zip(names, inputs, strict=True)}
            return [torch.from_numpy(x) for x in session.run(None, given)]

        return run


TARGETS = {"onnx": Onnx()}
