"""What very many images cost: the second start of a node, and the memory of a worker beyond the shared index.

    python benchmarks/scale.py [--images N] [--entries N] [--into FILE]

The listings and the index are synthetic: class folders without files, names that are made up, one image that every
entry of the index points to. So it takes under a gigabyte of disk, in a temporary folder that is removed.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES, SHARDS, BATCH, BATCHES = 1000, 1000, 64, 20


def start(root: Path) -> dict[str, float]:
    """Seconds of a fresh process until the listing of the training images is there, with and without its imports."""
    code = f"""
import time; begun = time.perf_counter()
from tetravit.data.datasets.image_folder import ImageFolder
ready = time.perf_counter()
data = ImageFolder({str(root)!r}, "train")
assert data.key(len(data) - 1)
print(len(data), time.perf_counter() - ready, time.perf_counter() - begun)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    count, own, whole = out.split()
    return {"images": int(count), "listing_s": round(float(own), 3), "with_imports_s": round(float(whole), 3)}


def write_listing(root: Path, images: int) -> float:
    """Make class folders, and let a first start list `images` made-up files in them; returns its seconds."""
    for part in ("train", "val"):
        for i in range(CLASSES):
            (root / part / f"n{i:08d}").mkdir(parents=True)
    for folder, _, _ in os.walk(root):
        os.utime(folder, (time.time() - 100,) * 2)
    each = images // CLASSES
    code = f"""
import os, time
from tetravit.data.datasets import image_folder
def made_up(folder, problems=None, *, channels=3, times=None):
    times[folder] = os.stat(folder).st_mtime_ns
    name = os.path.basename(folder)
    return [f"{{name}}_{{i}}.JPEG" for i in range({each})]
image_folder.images_below = made_up
begun = time.perf_counter()
image_folder.ImageFolder({str(root)!r}, "train")
print(time.perf_counter() - begun)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return float(out)


def write_index(folder: Path, entries: int) -> None:
    """Shards of `entries` images, all of them the same bytes."""
    from tetravit.data.shards.index import ROW

    folder.mkdir(parents=True)
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), (9, 99, 200)).save(buffer, "jpeg")
    shard = folder / "train-000000.tar"
    with tarfile.open(shard, "w", format=tarfile.USTAR_FORMAT) as tar:
        member = tarfile.TarInfo("0.jpg")
        member.size = len(buffer.getvalue())
        tar.addfile(member, io.BytesIO(buffer.getvalue()))
    rows = np.memmap(folder / "train.index", dtype=ROW, mode="w+", shape=(entries,))
    counts = [len(part) for part in np.array_split(np.arange(entries), SHARDS)]
    rows["shard"] = np.repeat(np.arange(SHARDS), counts)
    rows["offset"], rows["size"] = 512, len(buffer.getvalue())
    rows["label"] = np.arange(entries) % CLASSES
    rows["crc"] = zlib.crc32(buffer.getvalue())
    rows.flush()
    shards = [
        {"name": shard.name, "size": shard.stat().st_size, "sha256": "", "count": count} for count in counts
    ]
    table = {"version": 1, "kind": "classify", "class_names": [f"c{i}" for i in range(CLASSES)]}
    (folder / "shards.json").write_text(json.dumps({**table, "parts": {"train": shards}}))


def worker_mib(folder: Path, shuffle: str) -> float:
    """Memory that a worker does not share, after some batches of random places."""
    code = f"""
import multiprocessing
from tetravit.data.config import DataConfig
from tetravit.data.loader import make_train_loader
config = DataConfig(name="shards", root={str(folder)!r}, batch_size={BATCH}, image_size=32, workers=1,
                    shuffle={shuffle!r})
loader = make_train_loader(config, seed=0)
batches = loader.batches(3)
for _ in range({BATCHES}):
    next(batches)
(worker,) = multiprocessing.active_children()
lines = open(f"/proc/{{worker.pid}}/smaps_rollup").read().splitlines()
print(sum(int(line.split()[1]) for line in lines if line.startswith("Private")) / 1024)
loader.close()
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return float(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1_280_000)
    parser.add_argument("--entries", type=int, default=14_200_000)
    parser.add_argument("--into", type=Path, help="append rows to this file")
    parser.add_argument("--note", default="", help="of the machine, for the rows")
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        os.environ["TETRAVIT_HOME"] = f"{name}/home"
        first = write_listing(Path(name, "set"), given.images)
        seconds = [start(Path(name, "set")) for _ in range(3)]
        middle = sorted(seconds, key=lambda row: row["listing_s"])[1]
        rows.append({"what": "second start", **middle, "first_s": round(first, 1)})
        write_index(Path(name, "few"), 100_000)
        write_index(Path(name, "many"), given.entries)
        for shuffle in ("full", "shards(16)"):
            few, many = (worker_mib(Path(name, part), shuffle) for part in ("few", "many"))
            more = {"worker_mib": round(many, 1), "more_than_100k_mib": round(many - few, 1)}
            rows.append({"what": "worker", "images": given.entries, "shuffle": shuffle, **more})
    for row in rows:
        print(json.dumps(row))
        if given.into is not None:
            with given.into.open("a") as out:
                out.write(json.dumps({**row, "date": time.strftime("%Y-%m-%d"), "note": given.note}) + "\n")


if __name__ == "__main__":
    main()
