"""Where the time of one image goes: products, convolutions, norms, activations, copies, per model.

    python benchmarks/one_image.py [MODEL ...] [--size 224] [--rounds 5] [--products chosen|fused|plain]
                                   [--jsonl FILE]

Inference in float32 on one thread of a processor, operator by operator; processor time, to which other work on the
machine does not count, the median over the rounds. `--products`: linear layers with bias, GELU and residual in one
pass of oneDNN (fused), by MKL with passes of their own (plain), or as this processor takes them (chosen); see
`kernels/linear.py`.
"""

import argparse
import json
import statistics
import time
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tetravit.benchmark.speed import device_name
from tetravit.kernels import linear
from tetravit.models import create_model

MODELS = (
    *("xcit_small_12_p16", "xcit_small_12_p8", "convit_small"),
    *("gcvit_tiny", "twins_svt_small", "twins_pcpvt_small"),
)
KINDS = {  # words in the names of operators; the first that fits counts
    "products": ("addmm", ".mm.", "bmm", "_linear_pointwise", "addmv"),
    "convolutions": ("conv",),
    "attention": ("attention", "softmax"),
    "norms": ("norm",),
    "activations": ("gelu", "sigmoid", "relu"),
    "copies": ("copy", "clone", "contiguous", ".cat.", "fill", "zero"),
    "sums and factors": ("add", "mul", "div", "sum", "mean", "sub"),
}


def kind_of(operator: str) -> str:
    """The kind of an operator of PyTorch."""
    return next((kind for kind, words in KINDS.items() if any(word in operator for word in words)), "other")


class Split(TorchDispatchMode):
    """Milliseconds of this thread in operators, by kind; views and the dispatch itself are not counted."""

    def __init__(self) -> None:
        super().__init__()
        self.spent = dict.fromkeys([*KINDS, "other"], 0.0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        start = time.thread_time()
        out = func(*args, **(kwargs or {}))
        self.spent[kind_of(str(func))] += 1000 * (time.thread_time() - start)
        return out


def split(model: nn.Module, image: Tensor) -> dict[str, float]:
    """Milliseconds of a call by kind."""
    with Split() as mode:
        model(image)
    return mode.spent


def measure(name: str, size: int, rounds: int) -> tuple[float, Mapping[str, float]]:
    """Milliseconds of a call without the profiler, and by kind with it."""
    torch.manual_seed(0)
    model, image = create_model(name, image_size=size).eval(), torch.randn(1, 3, size, size)
    whole, parts = [], []
    with torch.inference_mode():
        model(image)
        for _ in range(rounds):
            start = time.process_time()
            model(image)
            whole.append(1000 * (time.process_time() - start))
            parts.append(split(model, image))
    return statistics.median(whole), {k: statistics.median(p[k] for p in parts) for k in parts[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=list(MODELS))
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--products", choices=("chosen", "fused", "plain"), default="chosen")
    parser.add_argument("--jsonl", type=Path, help="append the rows to this file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch._C._len_torch_dispatch_stack = lambda: (
        0
    )  # under `Split` too, layers take the form that they take without
    if args.products != "chosen":
        linear._fuses_faster = lambda narrow: args.products == "fused"  # type: ignore[assignment]
    columns = [*KINDS, "other"]
    print(
        f"{device_name(torch.device('cpu'))}, 1 thread, torch {torch.__version__}, {args.size} px; milliseconds"
    )
    print(f"{'model':20}{'ms':>8}" + "".join(f"{column:>18}" for column in columns))
    for name in args.models:
        whole, parts = measure(name, args.size, args.rounds)
        print(f"{name:20}{whole:8.1f}" + "".join(f"{parts[c]:18.1f}" for c in columns), flush=True)
        row = {
            "model": name,
            "mode": "one_image",
            "products": args.products,
            "fused": linear._fuses_faster(False),
            "size": args.size,
            "device": device_name(torch.device("cpu")),
            "capability": torch.backends.cpu.get_cpu_capability(),
            "threads": 1,
            "ms": round(whole, 2),
            **{f"{c.replace(' ', '_')}_ms": round(parts[c], 2) for c in columns},
            "rounds": args.rounds,
            "torch": torch.__version__,
            "date": date.today().isoformat(),
            "command": f"python benchmarks/one_image.py --products {args.products}",
        }
        if args.jsonl:
            with args.jsonl.open("a") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
