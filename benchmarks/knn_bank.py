"""k-NN of 50,000 images over the features of all of ImageNet-1k's training images: memory and time.

    python benchmarks/knn_bank.py [--bank 1281167] [--test 50000] [--part 1024] [--width 384] [--classes 1000]
                                  [--ks 10,20,100,200] [--dtype float16] [--threads 2] [--device cpu] [--jsonl FILE]

The bank is whole, `part` of the test images are classified in one pass over it, for all k at once. Memory is the peak
of the process, imports included, and what the other test images add to it by size: their features, and a vote for
every class and k. Time grows with the test images, so it is scaled by their number; that of the bank is not. Features
are random: neither time nor memory depends on them. Linux only.
"""

import argparse
import json
import time
from datetime import date
from pathlib import Path

import torch

from tetravit.benchmark.speed import device_name
from tetravit.metrics import knn

GIB = 2**30
FLOAT32 = 4  # bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bank", type=int, default=1_281_167, help="training images")
    parser.add_argument("--test", type=int, default=50_000, help="images to classify")
    parser.add_argument("--part", type=int, default=1024, help="of them, those that are classified here")
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--ks", default="10,20,100,200", help="numbers of neighbours")
    parser.add_argument("--dtype", choices=("float16", "bfloat16", "float32"), default="float16")
    parser.add_argument("--threads", type=int, help="of a CPU; default: what torch takes")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--jsonl", type=Path, help="append the row to this file")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    ks = [int(k) for k in args.ks.split(",")]
    torch.manual_seed(0)
    train = torch.empty(args.bank, args.width, dtype=dtype, device=device)
    for rows in train.split(65536):
        rows.copy_(torch.randn(rows.shape, device=device))
    labels = torch.randint(args.classes, (args.bank,), device=device)
    test = torch.randn(args.part, args.width, dtype=dtype, device=device)
    start = time.perf_counter()
    votes = knn.vote(train, labels, test, ks=ks, num_classes=args.classes)
    assert all(table.isfinite().all() for table in votes.values())
    seconds = time.perf_counter() - start
    others = (args.test - args.part) * (args.width * test.element_size() + len(ks) * args.classes * FLOAT32)
    peak = _peak(device)
    row = {
        "what": "knn",
        "bank": args.bank,
        "test": args.test,
        "part": args.part,
        "width": args.width,
        "dtype": args.dtype,
        "ks": ks,
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "part_seconds": round(seconds, 1),
        "minutes": round(seconds * args.test / args.part / 60, 1),
        "part_gib": round(peak / GIB, 2),
        "gib": round((peak + others) / GIB, 2),
        "torch": torch.__version__,
        "date": date.today().isoformat(),
        "command": "python benchmarks/knn_bank.py",
    }
    print(
        f"{args.part:,} of {args.test:,} images over {args.bank:,}: {seconds:.1f} s, peak {row['part_gib']} GiB"
    )
    print(f"all of them, by size: {row['minutes']} min, {row['gib']} GiB")
    if args.jsonl:
        with args.jsonl.open("a") as file:
            file.write(json.dumps(row) + "\n")


def _peak(device: torch.device) -> int:
    """Bytes of the process, or on the device, at most."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024


if __name__ == "__main__":
    main()
