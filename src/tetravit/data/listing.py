"""Listings of folders that are kept: a second start, and the other processes of a machine, need not list them again.

A listing holds as long as each of its folders has the time that it had; the time of a folder changes when a name
in it comes or goes. Folders that changed in the last seconds before they were listed are not kept: they may have
changed in the same tick of the clock again.

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
WORTH = 10_000  # images from which on a listing is kept
SETTLED_NS = 2 * 10**9  # how old the time of a folder is when it is listed
CACHE = Path(os.environ.get("TETRAVIT_HOME") or Path.home() / ".cache" / "tetravit").expanduser() / "listings"


class Listing(NamedTuple):
    """Paths end to end (bytes,) uint8, where each ends (N,), its class (N,), where each root's images end."""

    paths: np.ndarray
    ends: np.ndarray
    labels: np.ndarray
    places: np.ndarray


Times = dict[str, int]  # folder: its time in nanoseconds


def kept_listing(what: Any, problems: Problems, scan: Callable[[Times, Problems], Listing]) -> Listing:
    """The listing that `scan` makes, or that it made before. One process scans, the others wait and load it.

    Args:
        what: JSON-ready; what the listing depends on beside the folders.
        problems: what the scan leaves out is added.
        scan: lists; it fills in the folders it listed, with their times before that.
    """
    key = hashlib.sha256(json.dumps([VERSION, what], sort_keys=True).encode(errors="replace")).hexdigest()[
        :24
    ]
    folder = CACHE / key
    listing = _load(folder, problems)
    if listing is not None:
        return listing
    try:
        CACHE.mkdir(parents=True, exist_ok=True)
        lock = os.open(CACHE / f"{key}.lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError:  # no place for it
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
