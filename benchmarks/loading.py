"""Training images per second of processor time: our loader over a folder and over shards, beside timm's.

    python benchmarks/loading.py [--images N] [--rounds N] [--workers N] [--into FILE]

All read the same JPEGs of 500 x 375 pixels from the page cache, in turn, in one run. Processor time is that of this
process and of the workers, so that other programs blur it little. Pillow 13 refuses to posterize to no bits, on which
timm 1.0.31 ends: black is put in its place. "uint8": normalizing and erasing are left to the device, as on a GPU.
timm's prefetcher leaves them to the device too, which is this processor: its time counts. Finishing a batch of ours
here is the row without "uint8".
"""

import argparse
import io
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from tetravit.data.config import DataConfig
from tetravit.data.jpeg import decoder
from tetravit.data.loader import make_train_loader
from tetravit.data.shards.pack import pack

AUGMENTS = {
    "crop and flip": ("crop | flip", {}),
    "heavy": (
        "crop | flip | randaugment(2, 9) | erase(0.25)",
        {"auto_augment": "rand-m9-mstd0.5-inc1", "re_prob": 0.25},
    ),
}
CLASSES, BATCH, WARM, LINKS = 4, 64, 4, 16


def write_images(folder: Path, count: int) -> None:
    """Pictures with the spectrum of photographs, about 1 / f, each under several names: an epoch outlasts a round."""
    for i in range(count):
        generator = np.random.default_rng(i)
        spectrum = np.fft.rfft2(generator.standard_normal((3, 375, 500)))
        fy, fx = np.fft.fftfreq(375)[:, None], np.fft.rfftfreq(500)[None]
        pixels = np.fft.irfft2(spectrum / np.maximum(np.hypot(fy, fx), 1e-3), s=(375, 500))
        pixels = 127 + 55 * (pixels - pixels.mean()) / pixels.std()
        buffer = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8).transpose(1, 2, 0)).save(
            buffer, "jpeg", quality=90
        )
        for part in ("train", "val")[: 1 if i else 2]:
            place = folder / part / str(i % CLASSES)
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{i}.jpg").write_bytes(buffer.getvalue())
            for link in range(LINKS if part == "train" else 0):
                os.link(place / f"{i}.jpg", place / f"{i}_{link}.jpg")


Batches = Iterator[int]  # the images of each batch


def ours(root: Path, augment: str, workers: int, finish_later: bool) -> Callable[[], Batches]:
    config = DataConfig(
        name="image_folder", root=str(root), batch_size=BATCH, augment=augment, workers=workers
    )

    def run() -> Batches:
        loader = make_train_loader(config, seed=0, finish_later=finish_later)
        try:
            for batch in loader.batches():
                yield len(batch[0])
        finally:
            loader.close()

    return run


def timms(root: Path, options: dict[str, object], workers: int, prefetcher: bool) -> Callable[[], Batches]:
    import torch
    from timm.data import ImageDataset, auto_augment, create_loader

    posterize = auto_augment.posterize

    def mended(image: Image.Image, bits: int, **given: object) -> Image.Image:
        return posterize(image, bits, **given) if bits >= 1 else image.point([0] * 768)

    auto_augment.NAME_TO_OP["PosterizeIncreasing"] = mended

    def run() -> Batches:
        loader = create_loader(
            ImageDataset(str(root / "train")), (3, 224, 224), BATCH, is_training=True, use_prefetcher=prefetcher,
            device=torch.device("cpu"),
            num_workers=workers, persistent_workers=False, interpolation="bicubic", color_jitter=0.0, **options,
        )  # fmt: skip
        for batch, _ in loader:
            yield len(batch)

    return run


def rate(run: Callable[[], Batches], batches: int) -> float:
    """Images per second of processor time, after the first batches, while the workers go on."""
    stream = run()
    for _ in range(WARM):
        next(stream)
    start = processor_seconds()
    images = sum(next(stream) for _ in range(batches))
    spent = processor_seconds() - start
    stream.close()  # type: ignore[attr-defined]
    return images / spent


def processor_seconds() -> float:
    """Of this process and of its workers so far."""
    tick, total = os.sysconf("SC_CLK_TCK"), time.process_time()
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rsplit(")", 1)[1].split()
        total += (int(fields[11]) + int(fields[12])) / tick
    return total


def write_row(
    file: Path, augment: str, loader: str, rate: float, rates: list[float], given: argparse.Namespace
) -> None:
    import PIL
    import torch

    row = {
        "augment": augment, "loader": loader, "images_per_cpu_s": round(rate, 1),
        "least": round(min(rates), 1), "most": round(max(rates), 1), "images": given.batches * BATCH,
        "workers": given.workers, "rounds": given.rounds, "decoder": getattr(decoder(), "name", "pillow"),
        "pillow": PIL.__version__, "torch": torch.__version__, "date": time.strftime("%Y-%m-%d"), "note": given.note,
    }  # fmt: skip
    with file.open("a") as out:
        out.write(json.dumps(row) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=128, help="that are not the same")
    parser.add_argument("--batches", type=int, default=12, help="of 64 images, of each loader and round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--into", type=Path, help="append a row for each loader to this file")
    parser.add_argument("--note", default="", help="of the machine, for the rows")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, shards = Path(name, "folder"), Path(name, "shards")
        write_images(folder, given.images)
        pack(folder, shards, name="image_folder", shard_size=16_000_000)
        for title, (augment, options) in AUGMENTS.items():
            runs = {
                "folder": ours(folder, augment, given.workers, False),
                "folder, uint8": ours(folder, augment, given.workers, True),
                "shards": ours(shards, augment, given.workers, False),
                "timm": timms(folder, options, given.workers, False),
                "timm, prefetcher": timms(folder, options, given.workers, True),
            }
            rates: dict[str, list[float]] = {label: [] for label in runs}
            for _ in range(given.rounds):
                for label, run in runs.items():
                    rates[label].append(rate(run, given.batches))
            medians = {label: statistics.median(values) for label, values in rates.items()}
            for label, value in medians.items():
                if given.into is not None:
                    write_row(given.into, title, label, value, rates[label], given)
                times = value / medians["timm"]
                print(f"{title}, {label}: {value:.0f} images per CPU second, {times:.2f} times timm")


if __name__ == "__main__":
    main()
