"""Facts about one file: whether it decodes, unusual properties, and two fingerprints.

A record is a small JSON object, so that an interrupted check can continue.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image
from torch.nn import functional as F

import tetravit.data.datasets  # noqa: F401, the menu before one of the modules that its rows import
from tetravit.data.decode import BadImage, decode, file_bytes, opened
from tetravit.data.files import ending
from tetravit.data.label_maps import read_labels
from tetravit.data.palettes import Colour
from tetravit.data.shards.source import ShardSource
from tetravit.data.storage import StorageError

TINY, HUGE = 32, 25_000_000  # pixels: minimum side; maximum per image
SIDE, KEPT = 32, 8  # side of the picture behind a perceptual hash; side of its block of low frequencies
FLAT = 2.0  # mean square of the low frequencies below which an image is too flat for a hash
FORMATS = {
    ".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".mpo": "JPEG", ".png": "PNG",
    ".webp": "WEBP", ".gif": "GIF", ".bmp": "BMP", ".tif": "TIFF", ".tiff": "TIFF", ".ppm": "PPM", ".pgm": "PPM",
    ".pbm": "PPM", ".jp2": "JPEG2000", ".avif": "AVIF",
}  # fmt: skip

Record = dict[str, Any]


@dataclass(frozen=True)
class Maps:
    """How to decode label maps: see `LabelMaps`."""

    convert: Callable[[torch.Tensor], torch.Tensor] | None = None
    colours: Sequence[Colour] | None = None


def facts(root: str, path: str, maps: Maps | None = None, image: str | None = None) -> Record:
    """The record of a file below `root`.

    A record has `path`, `size` and `time` of the file, and `findings`: pairs of finding and detail. For an image it
    also has `hash` of its bytes, `look`: the perceptual hash, and `tint`: 4 x 4 mean colours; for a label map
    `labels`: pixels per label.

    Args:
        maps: decoding of a label map; None: the file is an image.
        image: the image of a label map; both must have the same size.
    """
    file = os.path.join(root, path)
    status = os.stat(file)
    record: Record = {"path": path, "size": status.st_size, "time": status.st_mtime_ns, "findings": []}
    try:
        if maps is not None:
            _map_facts(record, root, file, maps, image)
        else:
            _image_facts(record, file_bytes(file, path), path)
    except BadImage as error:
        name = "truncated" if _breaks_off(error.cause) else "unreadable"
        record["findings"].append([name, error.cause])
    return record


def shard_facts(job: tuple[str, str, int, int]) -> list[Record]:
    """Records of some images in shards: (folder, split, first, count). Paths are SPLIT/SHARD/MEMBER."""
    folder, part, first, count = job
    source, records = ShardSource(folder, part), []
    for index in range(first, first + count):
        record: Record = {
            "path": f"{part}/{index}",
            "size": int(source.rows[index]["size"]),
            "time": 0,
            "findings": [],
        }
        records.append(record)
        try:
            name, data = source.read(index)
            record["path"] = f"{part}/{os.path.relpath(name, folder)}"
            _image_facts(record, data, record["path"])
        except StorageError as error:
            record["findings"].append(["changed", str(error).rstrip(".")])
        except BadImage as error:
            record["findings"].append(
                ["truncated" if _breaks_off(error.cause) else "unreadable", error.cause]
            )
    return records


def _image_facts(record: Record, data: bytes, path: str) -> None:
    findings = record["findings"]
    record["hash"] = hashlib.blake2b(data, digest_size=16).hexdigest()
    with opened(data, path) as picture:
        width, height = picture.size
        kind = "JPEG" if picture.format == "MPO" else picture.format
        if FORMATS.get(ending(path), kind) != kind:
            findings.append(["wrong_ending", f"it is {kind}"])
        if _bits(picture, data) > 8:
            findings.append(["deep", f"{_bits(picture, data)} bits, {picture.mode}"])
        if picture.mode == "CMYK":
            findings.append(["cmyk", f"{width} x {height}"])
        frames = getattr(picture, "n_frames", 1)
        if frames > 1 and picture.format != "MPO":
            findings.append(["animated", f"{frames} frames"])
        turn = picture.getexif().get(ExifTags.Base.Orientation)
        if isinstance(turn, int) and 2 <= turn <= 8:
            findings.append(["turned", f"orientation {turn}"])
    if min(width, height) < TINY:
        findings.append(["tiny", f"{width} x {height}"])
    if width * height > HUGE:
        findings.append(["huge", f"{width} x {height}"])
    pixels = decode(data, name=path)
    record["look"], record["tint"] = fingerprint(pixels)


def _map_facts(record: Record, root: str, file: str, maps: Maps, image: str | None) -> None:
    from pathlib import Path

    labels = read_labels(Path(file), maps.colours)
    height, width = labels.shape
    labels = labels if maps.convert is None else maps.convert(labels)
    values, counts = np.unique(labels.numpy(), return_counts=True)
    record["labels"] = {int(v): int(c) for v, c in zip(values, counts, strict=True)}
    if image is not None:
        try:
            with opened(file_bytes(os.path.join(root, image), image), image) as picture:
                have = picture.size
        except BadImage:
            return  # it is counted with the images
        if have not in ((width, height), (height, width)):
            record["findings"].append(
                ["size", f"{width} x {height}, its image {image} {have[0]} x {have[1]}"]
            )


def fingerprint(pixels: torch.Tensor) -> tuple[str, str]:
    """uint8 (3, H, W) -> perceptual hash (64 bits) and 4 x 4 mean colours, in hexadecimal; "" for a flat image.

    The hash is the sign of the 8 x 8 lowest DCT frequencies of the 32 x 32 gray image, relative to their median.
    """
    small = F.interpolate(pixels[None].float(), (SIDE, SIDE), mode="area")[0]
    gray = small.mean(dim=0).double().numpy()
    low = (DCT @ gray @ DCT.T).ravel()
    rest = low[1:]
    if (rest**2).mean() < FLAT:
        return "", ""
    bits = np.concatenate(([False], rest > np.median(rest)))
    tint = F.adaptive_avg_pool2d(small, 4).round().to(torch.uint8).numpy()
    return np.packbits(bits).tobytes().hex(), tint.tobytes().hex()


def _dct() -> np.ndarray:
    """The first rows of the orthonormal cosine transform (KEPT, SIDE)."""
    k, n = np.arange(KEPT)[:, None], np.arange(SIDE)[None]
    rows = np.sqrt(2 / SIDE) * np.cos(np.pi * (2 * n + 1) * k / (2 * SIDE))
    rows[0] /= np.sqrt(2)
    return np.asarray(rows)


DCT = _dct()


def _bits(picture: Image.Image, data: bytes) -> int:
    """Bits per channel, from the header."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data[24]
    tags = getattr(picture, "tag_v2", None)
    if tags is not None:
        return max((int(b) for b in tags.get(258, (8,))), default=8)
    return 16 if picture.mode.startswith("I;16") else 32 if picture.mode in ("I", "F") else 8


def _breaks_off(cause: str) -> bool:
    return any(
        word in cause.lower() for word in ("truncated", "premature", "not enough data", "unexpected end")
    )
