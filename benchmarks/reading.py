"""What reading our weights costs, beside safetensors' own reader, and verifying them, beside hashlib alone.

    python benchmarks/reading.py [MODEL] [--rounds N]

The readers take turns on one file that is in the page cache; medians of wall time, with every tensor summed once
after reading, because a mapped tensor costs its time when it is used. Peaks are those of fresh processes, without
what the imports take. Hashing is measured in processor time, so that other programs do not blur it.
"""

import argparse
import hashlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from tetravit.models import create_model, save
from tetravit.weights.fileformat import digests, read

READERS: dict[str, Callable[[Path], Mapping[str, Tensor]]] = {
    "load_file of safetensors": load_file,
    "read(verify=False)": lambda file: read(file, verify=False)[0],
    "read(verify=True)": lambda file: read(file)[0],
}
PEAK = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
import reading
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
before = peak()
tensors = reading.READERS[sys.argv[1]](Path(sys.argv[2]))
total = sum(float(t.sum()) for t in tensors.values())
print(peak() - before)
"""


def seconds(reader: Callable[[Path], Mapping[str, Tensor]], file: Path) -> tuple[float, float]:
    """Wall time until the tensors are there, and until each was summed."""
    start = time.perf_counter()
    tensors = reader(file)
    there = time.perf_counter() - start
    for tensor in tensors.values():
        tensor.sum()
    return there, time.perf_counter() - start


def peak(reader: str, file: Path) -> int:
    """Bytes by which the resident memory of a fresh process grows at most, reading and summing."""
    command = [sys.executable, "-c", PEAK, reader, str(file), str(Path(__file__).parent)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def rate(work: Callable[[], object], size: int, rounds: int) -> float:
    """Bytes per second of processor time, the median."""
    times = []
    for _ in range(rounds):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return size / statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="deit_base")
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.safetensors"
        save(create_model(given.model), file)
        size = file.stat().st_size
        print(
            f"{given.model}: {size / 1e6:.0f} MB, {torch.get_num_threads()} threads, torch {torch.__version__}"
        )
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in READERS}
        for _ in range(given.rounds):
            for name, reader in READERS.items():
                times[name].append(seconds(reader, file))
        base = statistics.median(t[1] for t in times["load_file of safetensors"])
        print(f"{'':26} {'there ms':>9} {'summed ms':>9} {'ratio':>6} {'peak / file':>11}")
        for name, measured in times.items():
            there, summed = (statistics.median(t[i] for t in measured) for i in (0, 1))
            share = peak(name, file) / size
            print(f"{name:26} {1e3 * there:9.1f} {1e3 * summed:9.1f} {summed / base:6.2f} {share:11.2f}")
        tensors, body = read(file, verify=False)[0], file.read_bytes()
        ours = rate(lambda: digests(tensors), size, given.rounds)
        plain = rate(lambda: hashlib.sha256(body).digest(), size, given.rounds)
        print(f"verifying {ours / 1e9:.2f} GB/s per core; hashlib's sha256 alone {plain / 1e9:.2f} GB/s")


if __name__ == "__main__":
    main()
