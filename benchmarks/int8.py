"""int8 beside bfloat16 and float32, all through OpenVINO: python benchmarks/int8.py [MODEL ...]

Random weights, calibrated on two drawings: the speed does not depend on them, and predictions are not compared. The
three forms are called in turns in one process; a row has the medians. --busy marks rows of a machine with other work.
Each step prints its time to standard error; the graph for every size takes longest.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch

from tetravit.benchmark.speed import device_name
from tetravit.data.shapes import draw
from tetravit.exports import TARGETS
from tetravit.exports.base import Graph
from tetravit.exports.parts import int8
from tetravit.models import create_model
from tetravit.runtimes.base import capture, quiet

MODELS = ("xcit_nano_12_p16",)
IMAGES = 3  # one of them is the control


@contextmanager
def step(text: str) -> Iterator[None]:
    """Print what is being done, and the seconds it took."""
    print(f"{text} ... ", end="", file=sys.stderr, flush=True)
    start = time.perf_counter()
    yield
    print(f"{time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)


def row(name: str, size: int, batch: int, seconds: float, busy: bool) -> dict[str, object]:
    """The speeds of one model."""
    torch.manual_seed(0)
    model = create_model(name).eval().requires_grad_(False)
    drawn = [torch.from_numpy(draw(i, size=size).image).permute(2, 0, 1) for i in range(IMAGES)]
    inputs = [int8.prepare(model, image)(size, size)[None] for image in drawn]
    with tempfile.TemporaryDirectory() as folder:
        plain, quantized = Path(folder) / "plain.xml", Path(folder) / "quantized.xml"
        with step(f"{name}: capture the graph"), quiet():
            program = capture(model, torch.zeros(2, 3, size, size))
        with step(f"{name}: write it for OpenVINO"), quiet():
            graph = Graph(program, model.program_inputs, model.output_names, {"model": name}, "float32")
            TARGETS["openvino"].write(graph, plain)
        for ending in (".xml", ".bin"):
            shutil.copy(plain.with_suffix(ending), quantized.with_suffix(ending))
        control = int8.ReferencePredictions(model, [[inputs[0]]])
        with step(f"{name}: quantize it"), quiet():
            int8.quantize(quantized, [[x] for x in inputs[1:]], control, 1.0)
        int8.SECONDS = seconds
        with step(f"{name}: time the three forms"), quiet():
            speeds = int8.timed(plain, quantized, [torch.cat(inputs[:1] * batch)])
    return {
        "model": name,
        "size": size,
        "batch": batch,
        **{k: round(v, 3) for k, v in asdict(speeds).items() if k != "shape"},
        "device": device_name(torch.device("cpu")),
        "threads": torch.get_num_threads(),
        "busy": busy,
        **{package: version(package) for package in ("torch", "openvino", "nncf")},
        "date": date.today().isoformat(),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="*", default=list(MODELS))
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5.0, help="Of each of the three forms.")
    parser.add_argument("--busy", action="store_true")
    parser.add_argument("--into", type=Path)
    given = parser.parse_args()
    for name in given.models:
        line = json.dumps(row(name, given.size, given.batch, given.seconds, given.busy))
        print(line, flush=True)
        if given.into:
            with given.into.open("a") as file:
                file.write(line + "\n")
