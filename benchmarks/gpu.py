"""Our models on a GPU: outputs compared with the CPU's, and speed beside timm's.

    python benchmarks/gpu.py [--models NAME,...] [--parts checks,predict,step] [--batch 256,1] [--size 224]
                             [--dtype bfloat16] [--contenders NAME,...] [--rounds 5] [--seconds 0.5]
                             [--minutes 9] [--into FILE] [--device cuda]

`checks`: every family, and the heads of segmenters and detectors, against the same weights in float32 on the
processor: in float32 without TF32 to 1e-4 of the largest output, in bfloat16 to what bfloat16 holds. `predict` and
`step` (forward, backward, fused AdamW): ours, ours through torch.compile, timm's, and timm's through torch.compile,
in turns, each in a process of its own; the medians over the rounds count, with their spread, beside the rate of a
large matrix product measured in the same run. Where memory is short the batch is halved, for all of them. A run ends
in time with what it has: say `--models` and `--parts` to measure the rest in another. Rehearse without a GPU:

    python benchmarks/gpu.py --device cpu --batch 2 --size 64 --models xcit_nano_12_p16 --contenders plain,timm
"""

import argparse
import copy
import json
import math
import shlex
import signal
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from tetravit.benchmark.against import Contest, contest
from tetravit.benchmark.contenders import CONTENDERS, OURS, TRAINING
from tetravit.benchmark.speed import device_name
from tetravit.benchmark.table import MODES, contest_markdown
from tetravit.exports.compare import pictures
from tetravit.models import Detector, create_detector, create_model, create_segmenter
from tetravit.models.portable import apart
from tetravit.runtimes.base import needs

MODELS = (
    "xcit_small_12_p16",
    "convit_small",
    "gcvit_tiny",
    "twins_svt_small",
    "twins_pcpvt_small",
    "deit_small",
)
HEADS = ("semantic_fpn", "upernet", "retinanet", "mask_rcnn", "cascade")
UNDER_HEADS = "xcit_nano_12_p16"
PARTS = ("checks", "predict", "step")
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
        yield {
            "check": name,
            "dtype": dtype,
            "error": float(f"{value:.3g}"),
            "limit": LIMITS[dtype],
            "passed": value <= LIMITS[dtype],
            "device": device_name(device),
            "torch": torch.__version__,
            "date": date.today().isoformat(),
        }


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
    for name in (*models, *HEADS):
        torch.manual_seed(0)
        model = dense(name) if name in HEADS else create_model(name, image_size=size)
        for row in check(name, model, max(size, 160) if name in HEADS else size, device):
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
    return parser.parse_args()


def main() -> int:
    args = parsed()
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
            for batch in args.batch:
                for mode in (part for part in args.parts if part != "checks"):
                    able = [c for c in contenders if mode == "predict" or c in TRAINING]
                    for name in args.models:
                        unfinished = f"{mode} of {name} at batch {batch}"
                        found = measured(name, mode, batch, able, args)
                        asked += [(batch, row) for row in found]
                        keep(args.into, [asdict(row) for row in found])
                        seconds = time.perf_counter() - start
                        print(f"{unfinished}: done after {seconds:.0f} s", flush=True)
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
