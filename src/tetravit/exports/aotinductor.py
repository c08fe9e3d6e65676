"""AOTInductor: a graph compiled to native code for the processor it was written on."""

import json
import os
import platform
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tetravit.exports.base import KEY, Graph, Run, Target

FACTS = f"data/{KEY}.json"  # in the archive
LEVELS = ("DEFAULT", "AVX2", "AVX512")  # of instructions: each runs what the ones before run


class AOTInductor(Target):
    """.pt2, compiled: `torch._inductor.aoti_load_package(FILE)`, for this kind of processor alone.

    It is chosen by `format`, because graphs of `torch.export` end in .pt2 too. It needs a C++ compiler when it is
    written, and none when it is run. What it holds is in data/tetravit.json of the archive.
    """

    suffix = ".pt2"
    dtypes = ("float32", "bfloat16")
    by_ending = False
    runs_code = "it is native code"

    def unwritable(self) -> str:
        compilers = (os.environ.get("CXX", ""), "g++", "clang++", "c++")
        if any(name and shutil.which(name) for name in compilers):
            return ""
        return "it needs a C++ compiler, such as g++"

    def write(self, graph: Graph, path: Path) -> None:
        import torchvision  # noqa: F401  registers the operators that graphs of detectors call
        from torch._inductor import aoti_compile_and_package

        aoti_compile_and_package(graph.program, package_path=str(path))
        facts = {**graph.facts, "processor": kind_of_processor(), "names": list(graph.outputs)}
        with zipfile.ZipFile(path, "a", zipfile.ZIP_STORED) as archive:
            (root, *_) = archive.namelist()[0].split("/")
            archive.writestr(f"{root}/{FACTS}", json.dumps(facts))

    def load(self, path: Path) -> Run:
        import torchvision  # noqa: F401  registers the operators that graphs of detectors call
        from torch._inductor import aoti_load_package

        program = aoti_load_package(str(path))

        def run(inputs: Sequence[Tensor]) -> Sequence[Tensor]:
            with torch.no_grad():
                outputs: Any = program(*(x.contiguous() for x in inputs))
            return tuple(outputs) if isinstance(outputs, tuple | list) else (outputs,)

        return run

    def facts(self, path: Path) -> dict[str, Any]:
        try:
            with zipfile.ZipFile(path) as archive:
                (name,) = (n for n in archive.namelist() if n.endswith(f"/{FACTS}"))
                facts: dict[str, Any] = json.loads(archive.read(name))
                return facts
        except (ValueError, KeyError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} is no package of AOTInductor that `tetravit export` wrote.") from error

    def unfit(self, path: Path) -> str:
        made, here = self.facts(path)["processor"], kind_of_processor()
        place, _, level = made.rpartition(" ")
        mine, _, own = here.rpartition(" ")
        runs = made == here or (
            place == mine and {level, own} <= set(LEVELS) and LEVELS.index(level) <= LEVELS.index(own)
        )
        return "" if runs else f"it was compiled for {made}; this is {here}"


def kind_of_processor() -> str:
    """The system, the architecture and the widest instructions of this processor: "Linux x86_64 AVX2"."""
    return f"{platform.system()} {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


TARGETS = {"aotinductor": AOTInductor()}
