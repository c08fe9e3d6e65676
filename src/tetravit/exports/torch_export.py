"""PyTorch's own format: a graph without Python, for `torch.export.load`, AOTInductor and ExecuTorch."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from tetravit.exports.base import KEY, Graph, Run, Target


class TorchExport(Target):
    """.pt2: `torch.export.load(FILE).module()`; what it holds is in its extra file "tetravit.json"."""

    suffix = ".pt2"

    def write(self, graph: Graph, path: Path) -> None:
        torch.export.save(graph.program, path, extra_files={f"{KEY}.json": json.dumps(dict(graph.facts))})

    def load(self, path: Path) -> Run:
        import torchvision  # noqa: F401  registers the operators that graphs of detectors call

        program = torch.export.load(path).module()

        def run(inputs: Sequence[Tensor]) -> Sequence[Tensor]:
            with torch.no_grad():
                return program(*inputs)

        return run


TARGETS = {"torch": TorchExport()}
