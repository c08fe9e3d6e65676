"""Our models on a GPU: outputs compared with the CPU's, speed beside timm's, and where the time of each model goes.

    python benchmarks/gpu.py [--models NAME,...] [--parts checks,predict,step,kernels] [--batch 256,1] [--size 224]
                             [--dtype bfloat16] [--contenders NAME,...] [--rounds 5] [--seconds 0.5]
                             [--minutes 9] [--into FILE] [--device cuda] [--needs]

In this order. `checks`: a model of every family, the heads of segmenters and detectors, and a step of DINO, against
the same weights in float32 on the processor: in float32 without TF32 to 1e-4 of the largest output (of the step:
loss and gradients), in bfloat16 to what bfloat16 holds. `predict` at each batch and `step` (forward, backward, fused
AdamW) at the first: ours, ours through torch.compile (`max-autotune` off), timm's, and timm's through torch.compile,
in turns, each in a process of its own; the medians over the rounds count, with their spread, beside the rate of a
large matrix product measured in the same run. Graphs are compiled beforehand, several at a time, into the cache of
the compiler. Where memory is short the batch is halved, for all of them. `kernels`: of our compiled model at the
first batch, the GPU's kernels by their share of the time; what is no product of matrices is a candidate for a kernel
of our own. A run ends in time with what it has: say `--models` and `--parts` to measure the rest in another.

torch, torchvision, triton, timm, numpy and Pillow are taken as they are; `--needs` names what else this package
requires and the machine lacks. Without a network bring it as wheels, for the machine's own version of Python:

    pip download --no-deps --only-binary=:all: --python-version 3.12 --platform manylinux_2_28_x86_64
        --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 -d wheels pydantic pydantic-core
        annotated-types typing-inspection typing-extensions typer tomli-w pyyaml safetensors
    pip install --no-index --no-deps --target site wheels/*.whl     # there
    PYTHONPATH=site:src python benchmarks/gpu.py --into gpu.jsonl   # matplotlib is needed for no part of it

One file, because it is carried to a machine and read there. Rehearse without a GPU:

    python benchmarks/gpu.py --device cpu --batch 2 --size 64 --models xcit_nano_12_p16 --contenders plain,timm
"""

import argparse
import copy
import importlib.util
import json
import math
import multiprocessing
import os
import shlex
import signal
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from tetravit.benchmark.against import Contest, contest
from tetravit.benchmark.contenders import CONTENDERS, DTYPES, OURS, TRAINING, Task
from tetravit.benchmark.speed import device_name
from tetravit.benchmark.table import MODES, contest_markdown
from tetravit.exports.compare import pictures
from tetravit.models import Detector, create_detector, create_model, create_segmenter
from tetravit.models.portable import apart
from tetravit.runtimes.base import needs

MODELS = (  # of the README; their outputs are checked, and those of CHECKED
    "xcit_small_12_p16",
    "xcit_small_12_p8",
    "convit_small",
    "gcvit_tiny",
    "twins_svt_small",
    "twins_pcpvt_small",
)
CHECKED = ("deit_small",)
HEADS = ("semantic_fpn", "upernet", "retinanet", "mask_rcnn", "cascade")
STEP = "dino step"
COMPILED = ("plain-compiled", "compile")
CORES = 3  # of the processor for each graph that is compiled beforehand
SHOWN = 12  # kernels of a model
PRODUCTS = ("gemm", "conv", "cutlass", "xmma", "nvjet", "flash", "fmha", "attention")  # in names of kernels
NEEDED = ("pydantic", "typer", "tomli_w", "yaml", "safetensors", "PIL", "numpy", "torchvision", "timm")
UNDER_HEADS = "xcit_nano_12_p16"
PARTS = ("checks", "predict", "step", "kernels")
LIMITS = {"float32": 1e-4, "bfloat16": 0.1}  # of the largest output
RESERVE_S = 30.0  # that the processes may take to end, and the tables to be printed
SHORT = ("OutOfMemoryError", "CUDA out of memory")  # what torch says; a process that died says neither


class OutOfTime(BaseException):
    """The minutes are over; no Exception, which much code recovers from."""


@contextmanager
def minutes_left(minutes: float) -> Iterator[None]:
    """Raise OutOfTime in the body when they are nearly over."""

    def end(*_: object) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, max(1.0, 60 * minutes - min(RESERVE_S, 30 * minutes)))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def dense(head: str) -> nn.Module:
    """A small segmenter or detector; scores are spread, so that a detector finds something."""
    if head in ("semantic_fpn", "upernet"):
        return create_segmenter(UNDER_HEADS, head=head, num_classes=10, head_options={"width": 64})
    options = {"max_detections": 10} | ({} if head == "retinanet" else {"num_proposals": 50})
    model = create_detector(UNDER_HEADS, head=head, num_classes=5, head_options=options)
    with torch.no_grad():
        for name, parameter in model.head.named_parameters():
            if name.endswith(("score.weight", "delta.weight")):
                parameter.normal_(std=0.1)
            if name.endswith("score.bias"):
                parameter.zero_()
    return model


def outputs(model: nn.Module, images: Tensor) -> list[Tensor]:
    """What a network computes before anything is chosen from it, on the processor."""
    with torch.no_grad():
        found = model.head(model.feature_maps(images)) if isinstance(model, Detector) else model(images)
    return [x.float().cpu() for x in tree_leaves(found) if isinstance(x, Tensor)]


def dino_step(device: torch.device, dtype: torch.dtype | None) -> list[Tensor]:
    """Loss and gradients of a step of DINO on random views, always the same, on the processor."""
    from tetravit.data.datasets.base import DatasetInfo
    from tetravit.structures import Batch
    from tetravit.tasks.base import Progress
    from tetravit.tasks.dino import Dino, DinoConfig

    torch.manual_seed(0)
    config = DinoConfig(prototypes=64, hidden=64, bottleneck=32, local_views=2)
    model = create_model(UNDER_HEADS, num_classes=0)
    task = Dino(model, config, DatasetInfo("classify", 10, (), count=100)).train().to(device)
    views = [torch.randn(4, 3, side, side).to(device) for side in (64, 64, 32, 32)]
    batch = Batch(views[0], views=[Batch(view) for view in views[1:]])
    with (
        torch.autocast(device.type, dtype, enabled=True)
        if dtype
        else torch.autocast(device.type, enabled=False)
    ):
        loss = task.step(batch, Progress(0, 10, 5))["loss"]
    loss.backward()
    gradients = [p.grad for p in task.parameters() if p.grad is not None]
    whole = torch.cat(
        [g.flatten().float() for g in gradients]
    )  # by its largest value: small ones are rounding
    return [loss.detach().float().cpu(), whole.cpu()]


def step_rows(device: torch.device) -> Iterator[dict[str, Any]]:
    """Rows: the difference of the step on `device` from that of the CPU, in each type."""
    expected = dino_step(torch.device("cpu"), None)
    for dtype in LIMITS:
        got = dino_step(device, None if dtype == "float32" else torch.bfloat16)
        yield check_row(STEP, dtype, error(got, expected), device)


def error(got: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """The largest difference, as a share of the largest value of its tensor; infinite where one is no number."""
    pairs = list(zip(got, wanted, strict=True))
    assert pairs
    shares = [((g - w).abs().max() / w.abs().max().clamp(min=1e-6)).item() for g, w in pairs]
    return math.inf if any(math.isnan(share) for share in shares) else max(shares)


def check(name: str, model: nn.Module, size: int, device: torch.device) -> Iterator[dict[str, Any]]:
    """Rows: the difference of the outputs on `device` from those of the CPU, in each type."""
    model = model.eval()
    images = pictures(model, 2, size, size + 32)
    wanted = outputs(model, images)
    there = copy.deepcopy(model).to(device)
    found = {"float32": error(outputs(there, images.to(device)), wanted)}
    if isinstance(model, Detector):
        sizes = torch.tensor([[size, size + 32], [size - 10, size]])
        with torch.no_grad():
            mine, theirs = model(images, sizes), there(images.to(device), sizes.to(device))
        theirs = {key: value.cpu() for key, value in theirs.items()}
        found["float32"] = max(found["float32"], *(apart(theirs, mine, i) for i in range(2)))
    with torch.autocast(device.type, torch.bfloat16):
        found["bfloat16"] = error(outputs(there, images.to(device)), wanted)
    for dtype, value in found.items():
        yield check_row(name, dtype, value, device)


def check_row(name: str, dtype: str, value: float, device: torch.device) -> dict[str, Any]:
    """One comparison: the largest difference, and whether it is within the limit of the type."""
    return {
        "check": name,
        "dtype": dtype,
        "error": float(f"{value:.3g}"),
        "limit": LIMITS[dtype],
        "passed": value <= LIMITS[dtype],
        "device": device_name(device),
        "torch": torch.__version__,
        "date": date.today().isoformat(),
    }


def compile_ahead(tasks: Sequence[Task]) -> None:
    """Compile the graphs of contenders into the compiler's cache, several at a time."""
    if not tasks:
        return
    context, at_once = multiprocessing.get_context("spawn"), max(1, (os.cpu_count() or 1) // CORES)
    with ProcessPoolExecutor(at_once, mp_context=context, max_tasks_per_child=1) as pool:
        list(pool.map(compile_one, tasks))


def compile_one(task: Task) -> None:
    """One call of a contender; its errors are those of the process that measures it."""
    torch.manual_seed(0)
    torch.set_num_threads(task.threads)
    dtype = DTYPES[task.dtype] if task.contender in OURS else torch.float32
    with suppress(Exception), torch.set_grad_enabled(task.mode != "predict"):
        images = torch.randn(task.batch, 3, task.size, task.size, device=task.device, dtype=dtype)
        CONTENDERS[task.contender](task, images)()


def kernel_rows(name: str, batch: int, args: Any) -> list[dict[str, Any]]:
    """The kernels of our compiled model in inference, by their share of the time."""
    device = torch.device(args.device)
    model = create_model(name, image_size=args.size).eval().to(device, DTYPES[args.dtype])
    model.compile()
    images = torch.randn(batch, 3, args.size, args.size, device=device, dtype=DTYPES[args.dtype])
    on_gpu = device.type == "cuda"
    activity = torch.profiler.ProfilerActivity
    with torch.inference_mode():
        for _ in range(3):
            model(images)
        with torch.profiler.profile(activities=[activity.CUDA if on_gpu else activity.CPU]) as profile:
            for _ in range(3):
                model(images)
            if on_gpu:
                torch.cuda.synchronize(device)
    times: dict[str, float] = {}
    for event in profile.key_averages():
        spent = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        times[event.key] = times.get(event.key, 0.0) + spent
    whole = sum(times.values())
    ordered = sorted(times.items(), key=lambda item: -item[1])[:SHOWN]
    return [
        {
            "kernel": kernel[:120],
            "model": name,
            "batch": batch,
            "dtype": args.dtype,
            "ms": round(spent / 3000, 4),
            "share": round(spent / whole, 4),
            "product": any(word in kernel.lower() for word in PRODUCTS),
            "device": device_name(device),
            "torch": torch.__version__,
            "date": date.today().isoformat(),
        }
        for kernel, spent in ordered
    ]


def run_kernels(models: Sequence[str], batch: int, args: Any) -> None:
    """Print and keep the kernels of every model."""
    for name in models:
        rows = kernel_rows(name, batch, args)
        keep(args.into, rows)
        print(
            f"\n{name}, batch {batch}, compiled\n\n| kernel | ms | share | |\n|---|--:|--:|---|", flush=True
        )
        for row in rows:
            word = "product" if row["product"] else "candidate"
            print(f"| {row['kernel'][:60]} | {row['ms']:.3f} | {row['share']:.0%} | {word} |", flush=True)


def measured(name: str, mode: str, batch: int, contenders: Sequence[str], args: Any) -> list[Contest]:
    """The rows of a contest, at the largest batch up to `batch` that all contenders have the memory for."""
    while True:
        rows = contest(
            [name],
            contenders,
            sizes=[args.size],
            batch=batch,
            mode=mode,  # type: ignore[arg-type]
            dtype=args.dtype,
            device=args.device,
            rounds=args.rounds,
            seconds=args.seconds,
        )
        if batch == 1 or not any(word in row.failed for row in rows for word in SHORT):
            return rows
        batch //= 2
        print(f"{name}: memory is short; batch {batch}", flush=True)


def summary(rows: Sequence[tuple[int, Contest]]) -> Iterator[str]:
    """Geometric means over the models: ours beside timm's, and the faster of ours beside the faster of theirs.

    Each row comes with the batch that was asked for, of which its own may be a half or less.
    """
    for mode, asked in dict.fromkeys((row.mode, batch) for batch, row in rows):
        speeds: dict[str, dict[str, float]] = {}
        halved: dict[str, int] = {}
        for batch, row in rows:
            if (row.mode, batch) == (mode, asked) and row.images_per_s:
                speeds.setdefault(row.model, {})[row.contender] = row.images_per_s
                if row.batch != asked:
                    halved[row.model] = row.batch
        pairs = [("plain", "timm"), ("plain-compiled", "compile"), ("plain-compiled", "plain")]
        texts = []
        for ours, theirs in pairs:
            found = [s[ours] / s[theirs] for s in speeds.values() if ours in s and theirs in s]
            if found:
                texts.append(
                    f"{ours} / {theirs} {statistics.geometric_mean(found):.2f} ({len(found)} models)"
                )
        best = []
        for s in speeds.values():
            mine, others = ([v for k, v in s.items() if (k in OURS) is ours] for ours in (True, False))
            if mine and others:
                best.append(max(mine) / max(others))
        if best:
            texts.append(f"best / best {statistics.geometric_mean(best):.2f}")
        if texts:
            less = "".join(f", {batch} of {name}" for name, batch in halved.items())
            yield f"{MODES[mode]}, batch {asked}{less}: {'; '.join(texts)}"


def keep(into: Path | None, rows: Sequence[dict[str, Any]]) -> None:
    """Append rows to the file, with the command that made them."""
    if into is not None:
        command = shlex.join(["python", "benchmarks/gpu.py", *sys.argv[1:]])
        with into.open("a") as file:
            file.writelines(json.dumps({**row, "command": command}) + "\n" for row in rows)


def run_checks(models: Sequence[str], size: int, device: torch.device, into: Path | None) -> int:
    """Print and keep every check; how many failed."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    failed = 0
    print("| check | dtype | error | limit | |\n|---|---|--:|--:|---|", flush=True)
    for name in (*dict.fromkeys((*models, *CHECKED)), *HEADS, STEP):
        if name == STEP:
            rows = step_rows(device)
        else:
            torch.manual_seed(0)
            model = dense(name) if name in HEADS else create_model(name, image_size=size)
            rows = check(name, model, max(size, 160) if name in HEADS else size, device)
        for row in rows:
            keep(into, [row])
            failed += not row["passed"]
            word = "passed" if row["passed"] else "FAILED"
            print(f"| {name} | {row['dtype']} | {row['error']:.1e} | {row['limit']:g} | {word} |", flush=True)
    return failed


def names(known: Sequence[str]) -> Any:
    """A type of arguments: names with commas between them."""

    def read(text: str) -> list[str]:
        for part in text.split(","):
            if part not in known:
                raise argparse.ArgumentTypeError(f"one of {', '.join(known)}; got {part!r}")
        return text.split(",")

    return read


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=lambda text: text.split(","), default=list(MODELS))
    parser.add_argument("--parts", type=names(PARTS), default=list(PARTS))
    parser.add_argument(
        "--batch", type=lambda text: [int(part) for part in text.split(",")], default=[256, 1]
    )
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument(
        "--contenders", type=names(list(CONTENDERS)), default=["plain", "plain-compiled", "timm", "compile"]
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="of a contender in a round")
    parser.add_argument(
        "--minutes", type=float, default=9.0, help="after which the run ends with what it has"
    )
    parser.add_argument("--into", type=Path, metavar="FILE", help="append rows to this file, as JSON lines")
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--needs", action="store_true", help="name the packages that are missing here, and end"
    )
    return parser.parse_args()


def lacking() -> list[str]:
    """The modules of `NEEDED` that cannot be imported."""
    return [name for name in NEEDED if importlib.util.find_spec(name) is None]


def ordered(parts: Sequence[str], batches: Sequence[int]) -> list[tuple[Any, int]]:
    """Modes and batches in the order of their weight: the first batch first; steps at that one alone."""
    contests = [(mode, batches[0]) for mode in ("predict", "step") if mode in parts]
    return contests + [("predict", batch) for batch in batches[1:] if "predict" in parts]


def main() -> int:
    args = parsed()
    if args.needs:
        print(f"missing: {', '.join(lacking()) or 'nothing'}")
        return 0
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print(
            "There is no GPU here; --device cpu --batch 2 --size 64 rehearses without one.", file=sys.stderr
        )
        return 2
    contenders = list(args.contenders)
    if needs("timm", "timm"):
        print("timm is not here: ours eager beside ours compiled.", flush=True)
        contenders = [name for name in contenders if name in OURS]
    start, asked, failed, unfinished = time.perf_counter(), [], 0, ""
    print(f"{device_name(device)}, torch {torch.__version__}", flush=True)
    try:
        with minutes_left(args.minutes):
            if "checks" in args.parts:
                unfinished = "checks"
                failed = run_checks(args.models, args.size, device, args.into)
            contests = [
                (mode, batch, [c for c in contenders if mode == "predict" or c in TRAINING])
                for mode, batch in ordered(args.parts, args.batch)
            ]
            unfinished = "compiling"
            compile_ahead(
                [
                    Task(name, c, args.size, batch, args.dtype, mode, args.device, torch.get_num_threads())
                    for mode, batch, able in contests
                    for name in args.models
                    for c in able
                    if c in COMPILED
                ]
            )
            print(f"compiled after {time.perf_counter() - start:.0f} s", flush=True)
            for mode, batch, able in contests:
                for name in args.models:
                    unfinished = f"{mode} of {name} at batch {batch}"
                    measurements = measured(name, mode, batch, able, args)
                    asked += [(batch, row) for row in measurements]
                    keep(args.into, [asdict(row) for row in measurements])
                    seconds = time.perf_counter() - start
                    print(f"{unfinished}: done after {seconds:.0f} s", flush=True)
            if "kernels" in args.parts:
                unfinished = "kernels"
                run_kernels(args.models, args.batch[0], args)
        unfinished = ""
    except OutOfTime:
        print(f"The {args.minutes:g} minutes are over; not finished: {unfinished}, and what follows.")
    rows = [row for _, row in asked]
    for mode in dict.fromkeys(row.mode for row in rows):
        print(f"\n{contest_markdown([row for row in rows if row.mode == mode])}")
    for row in rows:
        if row.failed:
            print(f"{row.contender} on {row.model}, {row.mode}, batch {row.batch}: {row.failed}")
    print("\n".join(["", *summary(asked)]), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
