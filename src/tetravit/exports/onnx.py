"""ONNX files, for ONNX Runtime and other readers."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tetravit.exports.base import Graph, Run, Target
from tetravit.runtimes.base import needs, onnx_form

SYMBOL = re.compile(r"\bs\d+\b")


class Onnx(Target):
    """.onnx: one file for every batch, height and width; its metadata describe it, each value as JSON."""

    suffix = ".onnx"
    dtypes = ("float32", "float16")
    packages = ("onnxruntime", "onnx", "onnxscript")

    def ready(self) -> str:
        return needs("onnxscript", "onnx") or needs("onnxruntime", "onnx")

    def write(self, graph: Graph, path: Path) -> None:
        model = onnx_form(graph.program, graph.inputs, graph.outputs)
        _name_axes(model.graph)
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

    def facts(self, path: Path) -> dict[str, Any]:
        import onnx

        try:
            rows = onnx.load(path, load_external_data=False).metadata_props
            return {row.key: json.loads(row.value) for row in rows}
        except Exception as error:  # protobuf raises many types
            raise ValueError(f"{path} is no ONNX file that `tetravit export` wrote.") from error


def _name_axes(graph: Any) -> None:
    """Rename the axes of images to batch, height and width (or 32*rows, 32*columns); torch names them s34, s14."""
    names: dict[str, str] = {}
    sides = [x.dim_param for x in graph.input[0].type.tensor_type.shape.dim]
    whole = {0: "batch", 2: "height", 3: "width"}
    for axis, name in (whole | {2: "rows", 3: "columns"} if "*" in sides[2] else whole).items():
        names |= dict.fromkeys(SYMBOL.findall(sides[axis]), name)
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = SYMBOL.sub(lambda match: names.get(match[0], match[0]), dim.dim_param)


TARGETS = {"onnx": Onnx()}
