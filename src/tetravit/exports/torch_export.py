"""PyTorch's own format: a graph without Python, for `torch.export.load`, AOTInductor and ExecuTorch."""

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tetravit.exports.base import KEY, Graph, Run, Target


class TorchExport(Target):
    """.pt2: `torch.export.load(FILE).module()`; what it holds is in its extra file "tetravit.json"."""

    suffix = ".pt2"
    runs_code = "PyTorch unpickles parts of it"

    def write(self, graph: Graph, path: Path) -> None:
        torch.export.save(graph.program, path, extra_files={f"{KEY}.json": json.dumps(dict(graph.facts))})

    def load(self, path: Path) -> Run:
        import torchvision  # noqa: F401  registers the operators that graphs of detectors call

        program = torch.export.load(path).module()

        def run(inputs: Sequence[Tensor]) -> Sequence[Tensor]:
            with torch.no_grad():
                return program(*inputs)

        return run

    def facts(self, path: Path) -> dict[str, Any]:
        try:
            with zipfile.ZipFile(path) as archive:
                (name,) = (n for n in archive.namelist() if n.endswith(f"/extra/{KEY}.json"))
                facts: dict[str, Any] = json.loads(archive.read(name))
                return facts
        except (ValueError, KeyError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} is no graph of PyTorch that `tetravit export` wrote.") from error


TARGETS = {"torch": TorchExport()}
