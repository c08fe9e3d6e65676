"""Cached folder listings: a second start, and other processes on the machine, skip the listing.

A cached listing is valid while the modification time of each folder is unchanged; it changes when a name is added or
removed. Folders modified within the last seconds before listing are not cached: they may change again within one
clock tick.

CACHE/KEY/paths.bin, ends.npy, labels.npy, places.npy, listing.json; mapped into memory, shared by processes.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tetravit.data.problems import Problems
from tetravit.files import exclusive

VERSION = 1
WORTH = 10_000  # minimum number of images for caching
SETTLED_NS = 2 * 10**9  # minimum age of a folder's modification time
CACHE = Path(os.environ.get("TETRAVIT_HOME") or Path.home() / ".cache" / "tetravit").expanduser() / "listings"


class Listing(NamedTuple):
    """Concatenated paths (bytes,) uint8, end of each path (N,), class of each (N,), end of each root's images."""

    paths: np.ndarray
    ends: np.ndarray
    labels: np.ndarray
    places: np.ndarray


Times = dict[str, int]  # folder: its modification time in nanoseconds


def kept_listing(inputs: Any, problems: Problems, scan: Callable[[Times, Problems], Listing]) -> Listing:
    """The cached listing, or the result of `scan`. One process scans; the others wait and load its result.

    Args:
        inputs: JSON-ready; what the listing depends on besides the folders.
        problems: receives the files left out by the scan.
        scan: lists the folders, and fills in their modification times, read before listing.
    """
    key = hashlib.sha256(json.dumps([VERSION, inputs], sort_keys=True).encode(errors="replace")).hexdigest()[
        :24
    ]
    folder = CACHE / key
    listing = _load(folder, problems)
    if listing is not None:
        return listing
    try:
        CACHE.mkdir(parents=True, exist_ok=True)
        lock = os.open(CACHE / f"{key}.lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError:  # no space for the cache
        return scan({}, problems)
    try:
        with exclusive(lock):
            listing = _load(folder, problems)
            if listing is None:
                times, own, now = Times(), Problems(), time.time_ns()
                listing = scan(times, own)
                problems.merge(own)
                if len(listing.ends) >= WORTH and max(times.values(), default=0) < now - SETTLED_NS:
                    with suppress(OSError):
                        _save(folder, listing, times, own)
            return listing
    finally:
        os.close(lock)


def _load(folder: Path, problems: Problems) -> Listing | None:
    try:
        table = json.loads((folder / "listing.json").read_text(encoding="utf-8"))
        if any(os.stat(place).st_mtime_ns != value for place, value in table["times"].items()):
            return None
        paths = np.memmap(folder / "paths.bin", dtype=np.uint8, mode="r")
        arrays = [np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("ends", "labels", "places")]
    except (OSError, ValueError, KeyError):
        return None
    problems.merge(Problems(table["counts"], table["first"]))
    return Listing(paths, *arrays)


def _save(folder: Path, listing: Listing, times: Times, problems: Problems) -> None:
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        listing.paths.tofile(partial / "paths.bin")
        for name in ("ends", "labels", "places"):
            np.save(partial / f"{name}.npy", getattr(listing, name))
        table = {"times": times, "counts": problems.counts, "first": problems.first}
        (partial / "listing.json").write_text(json.dumps(table), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
