"""How long people wait before something happens: imports, a model, the verbs, the first step of a run.

    python benchmarks/first_step.py [--images 1000] [--model xcit_tiny_12_p16] [--rounds 3] [--jsonl FILE]

Each in a process of its own, on one thread: seconds of the processor, to which other work on the machine does not
count, and by the clock; the medians over the rounds. The run is `tetravit train finetune` of a folder of JPEG files
of 500 x 375 pixels in ten classes, up to the moment at which its first step starts.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tetravit.benchmark.speed import device_name
from tetravit.runtimes.parts.load import Load

RUN = """
import os, sys
import tetravit.engine.optim as optim
optim.set_values = lambda *args, **kwargs: os._exit(0)  # the first thing that a step does
from tetravit.cli import main
main(sys.argv[1:])
"""


def images(folder: Path, count: int) -> None:
    """ROOT/train and ROOT/val, four images of five to train."""
    generator = np.random.default_rng(0)
    small = generator.integers(0, 256, (24, 32, 3), dtype=np.uint8)
    picture = Image.fromarray(small).resize((500, 375), Image.Resampling.BICUBIC)
    for i in range(count):
        place = folder / ("train" if i % 5 else "val") / f"class{i // 5 % 10}"
        place.mkdir(parents=True, exist_ok=True)
        picture.save(place / f"{i}.jpg", quality=90)


def seconds(command: Sequence[str]) -> tuple[float, float]:
    """Seconds of the processor and by the clock that a command takes."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode not in (0, 2):  # 2: the mistake of the misspelt name
        raise RuntimeError(done.stderr)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--model", default="xcit_tiny_12_p16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jsonl", type=Path, help="append the rows to this file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, python = Path(name), sys.executable
        images(folder, args.images)
        train = ["train", "finetune", f"data.root={folder}", f"model.name={args.model}", "data.workers=1"]
        build = f"import tetravit; tetravit.create_model({args.model!r})"
        commands = {
            "import torch": [python, "-c", "import torch"],
            "create_model": [python, "-c", build],
            "list models": [python, "-m", "tetravit", "list", "models"],
            "show": [python, "-m", "tetravit", "show", args.model],
            "misspelt recipe": [python, "-m", "tetravit", "train", "finetunee"],
            "first step": [python, "-c", RUN, *train, "run.device=cpu", "--into", str(folder / "run{round}")],
        }
        print(f"{device_name(torch.device('cpu'))}, torch {torch.__version__}; seconds")
        print(f"{'what':20}{'processor':>12}{'clock':>12}")
        for what, command in commands.items():
            load = Load()
            taken = [
                seconds([word.replace("{round}", str(i)) for word in command]) for i in range(args.rounds)
            ]
            processor, wall = (statistics.median(t[i] for t in taken) for i in (0, 1))
            print(f"{what:20}{processor:12.2f}{wall:12.2f}", flush=True)
            row = {
                "model": args.model,
                "what": what.replace(" ", "_"),
                "images": args.images,
                "processor_s": round(processor, 3),
                "wall_s": round(wall, 3),
                "others": round(
                    max(0.0, load.others() - processor / wall), 2
                ),  # cores; above 0.2 it was busy
                "device": device_name(torch.device("cpu")),
                "threads": 1,
                "rounds": args.rounds,
                "torch": torch.__version__,
                "date": date.today().isoformat(),
                "command": "python benchmarks/first_step.py",
            }
            if args.jsonl:
                with args.jsonl.open("a") as file:
                    file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
