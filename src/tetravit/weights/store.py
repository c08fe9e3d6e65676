"""The cache of published weights: files are downloaded once, atomically, and verified by hash.

The folder is the platform's cache folder, or TETRAVIT_HOME. With TETRAVIT_OFFLINE=1 nothing is downloaded. A file
without a published hash is accepted at its first download; the hash is stored beside it, and a later download with
another hash is rejected.
"""

import hashlib
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tetravit import weights
from tetravit.files import exclusive, read_json, sync_folder, write_json
from tetravit.registry import pick
from tetravit.weights import fileformat, torchfile
from tetravit.weights.base import Checkpoint, Source
from tetravit.weights.download import NoNetwork, Patience, Unavailable, transfer
from tetravit.weights.fileformat import BadFile
from tetravit.weights.layouts import KEY_MAPS

READABLE = (".pth", ".pt", ".bin", ".tar", ".safetensors")
QUICK_S = 1.0  # a mirror is tried after an unreachable source if that failed within this time


@dataclass(frozen=True)
class Fetched:
    """A local file. source: its origin; None: it was imported, in our format."""

    path: Path
    source: Source | None


def home() -> Path:
    """The folder of the cache: TETRAVIT_HOME, or the platform's cache folder."""
    if chosen := os.environ.get("TETRAVIT_HOME"):
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "tetravit" / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "tetravit"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tetravit"


def offline() -> bool:
    """Whether TETRAVIT_OFFLINE forbids downloads."""
    return os.environ.get("TETRAVIT_OFFLINE", "").lower() not in ("", "0", "false", "no")


def find(name: str) -> Checkpoint:
    """The catalogue row NAME.TAG.

    Raises:
        ValueError: if there is none; the nearest name is suggested.
    """
    return pick(weights.CHECKPOINTS, name, "weights")


def row_at(url: str) -> Checkpoint | None:
    """The catalogue row of the file at a URL; None: there is none."""
    return next((row for row in weights.CHECKPOINTS.values() if url in (s.url for s in row.sources)), None)


def place(url: str) -> Path:
    """The path in the cache for a URL; it contains the original file name."""
    name = re.sub(r"[^\w.-]", "_", urlsplit(url).path.rsplit("/", 1)[-1])[-80:]
    return home() / "weights" / f"{hashlib.sha256(url.encode()).hexdigest()[:10]}_{name}"


def imported(name: str) -> Path:
    """The path of an imported NAME.TAG, in our format.

    Raises:
        ValueError: if the name is malformed.
    """
    if not re.fullmatch(r"\w+\.\w+", name):
        raise ValueError(f"Weights are called NAME.TAG, like xcit_nano_12_p16.mine; got {name!r}.")
    return home() / "weights" / f"{name}.safetensors"


def cached(name: str) -> Fetched | None:
    """The local file of NAME.TAG: an imported one first, else any of the row's sources."""
    if imported(name).is_file():
        return Fetched(imported(name), None)
    sources = weights.CHECKPOINTS[name].sources if name in weights.CHECKPOINTS else ()
    return next((Fetched(place(s.url), s) for s in sources if place(s.url).is_file()), None)


def fetch(name: str, *, accept_license: bool = False, patience: Patience | None = None) -> Fetched:
    """The file of NAME.TAG, from the cache or from the first source that responds.

    Args:
        name: a row of the catalogue, or imported weights.
        accept_license: accept a licence that forbids commercial use; required once per licence.
        patience: None: the default.

    Raises:
        ValueError: if the weights are unknown, or their licence has not been accepted.
        BadFile: if the download is damaged or has another hash.
        Unavailable: if the download fails.
    """
    cached_file = cached(name)
    if cached_file and cached_file.source is None and name not in weights.CHECKPOINTS:
        return cached_file
    row = find(name)
    check_license(row, accept=accept_license)
    if cached_file:
        return cached_file
    sources = [s for s in row.sources if not s.manual and _readable(row, s)]
    if not sources:
        raise Unavailable(
            f"{name} is on Google Drive, which scripts cannot fetch: download {row.sources[0].url} "
            f"in a browser, then `tetravit weights import FILE --as {name}`."
        )
    if offline():
        raise Unavailable(
            f"{name} is not in {home()}, and TETRAVIT_OFFLINE is set. "
            f"On a connected machine: `tetravit weights bundle {name}`."
        )
    causes, waited = [], 0.0
    for tried, source in enumerate(sources, 1):
        start = time.monotonic()
        try:
            return Fetched(download(source.url, sha256=source.sha256, patience=patience), source)
        except NoNetwork as error:
            causes.append(error.cause)
            waited += time.monotonic() - start
            if len(causes) == tried and (tried == len(sources) or waited > QUICK_S):
                raise Unavailable(
                    f"{name} is not in {home()}, and there is no network ({causes[0]}). On a connected machine: "
                    f"`tetravit weights bundle {name}`; here: `tetravit weights import FILE`. "
                    "TETRAVIT_OFFLINE=1 skips the try."
                ) from None
            if tried == len(sources):
                raise
        except (Unavailable, BadFile) as error:
            if source is sources[-1]:
                raise
            print(f"tetravit: {error} Trying {sources[sources.index(source) + 1].url}.", file=sys.stderr)
    raise AssertionError("the last source returns or raises")


def check_license(row: Checkpoint, *, accept: bool = False) -> None:
    """Require the acceptance of a licence that forbids commercial use, once per machine.

    Raises:
        ValueError: if it has not been accepted.
    """
    if row.commercial:
        return
    file = home() / "licences.json"
    accepted = read_json(file).get("accepted", [])
    if row.licence in accepted:
        return
    if not accept:
        raise ValueError(
            f"{row.name} is licensed {row.licence}, which forbids commercial use. "
            f"Accept that once with --accept-license (in Python: accept_license=True)."
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, {"accepted": sorted({*accepted, row.licence})})


def download(url: str, *, sha256: str = "", patience: Patience | None = None) -> Path:
    """Download a file, or use the cached one. It is complete and verified, or absent.

    An interrupted transfer, of this process or an earlier one, is resumed. Processes that download the same file take
    turns; a killed process leaves nothing to clean up.

    Args:
        url: http or https.
        sha256: the hash of the file, or its prefix; "": the one recorded at the first download.
        patience: None: the default.

    Raises:
        ValueError: for another scheme of URL.
        BadFile: if the download has another hash, or is damaged.
        Unavailable: if the download fails.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise ValueError(f"Weights are fetched over http or https; got {url!r}.")
    path = place(url)
    if path.is_file():
        return path
    if offline():
        raise Unavailable(f"{url} is not in {home()}, and TETRAVIT_OFFLINE is set.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with lock(path):
        if path.is_file():  # another process downloaded it
            return path
        part = path.with_name(path.name + ".part")
        known = sha256 or record(path).get("sha256", "")
        transfer(url, part, resumable=bool(known), patience=patience or Patience())
        accept(url, part, path, known)
    return path


def verify(names: Sequence[str] = ()) -> list[tuple[Path, str]]:
    """Compare every kept file with its hash (no names: all files).

    Returns:
        (file, "") for each intact file, (file, fault) for each other one.
    """
    folder = home() / "weights"
    if names:
        fetched = [(name, cached(name)) for name in names]
        absent = [name for name, entry in fetched if entry is None]
        if absent:
            raise ValueError(f"{absent[0]} is not in {home()}.")
        files = [entry.path for _, entry in fetched if entry]
    else:
        files = sorted(p for p in folder.glob("*") if p.is_file() and p.name.endswith(READABLE))
    return [(path, _wrong(path)) for path in files]


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """A lock on `path` for one process at a time. The system releases the lock of a killed process."""
    folder = home() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{path.name}.lock").open("a+") as file:

        def waiting() -> None:
            file.seek(0)
            print(f"tetravit: waiting for process {file.read() or '?'}: {path.name}", file=sys.stderr)

        with exclusive(file.fileno(), waiting):
            file.seek(0)
            file.truncate()
            file.write(str(os.getpid()))
            file.flush()
            yield


def _readable(row: Checkpoint, source: Source) -> bool:
    """Whether this package has a map for the tensor names of a source."""
    known = KEY_MAPS.get(row.head, {}) if row.head else {}
    family = row.model.split("_")[0]
    return source.layout in weights.LAYOUTS.get(family, {"official"}) or source.layout in known


def accept(name: str, part: Path, path: Path, known: str) -> None:
    """Move a complete, verified file to its final path, and record its hash."""
    actual = sha256_of(part)
    if known and not actual.startswith(known):
        part.unlink()
        raise BadFile(f"{name} has sha256 {actual}, but {known} is expected; it was not kept.")
    try:
        check_whole(part, path.name)
    except BadFile as error:
        part.unlink()
        raise BadFile(f"{name}: {str(error).replace(str(part), 'the file')} It was not kept.") from None
    with part.open("rb") as file:
        os.fsync(file.fileno())
    write_json(_record_file(path), {"sha256": actual, "size": part.stat().st_size, "from": name})
    os.replace(part, path)
    sync_folder(path.parent)
    with suppress(OSError):
        part.with_name(part.name + ".json").unlink()


def check_whole(path: Path, name: str) -> None:
    """Read the structure of a weights file, without its tensors: detects HTML pages and truncated files.

    Raises:
        BadFile: if it is damaged.
    """
    if name.endswith(".safetensors"):
        fileformat.read_index(path)
    elif name.endswith(READABLE):
        torchfile.load(path, verify=False)


def _wrong(path: Path) -> str:
    known = record(path)
    try:
        if known:
            same = path.stat().st_size == known["size"] and sha256_of(path) == known["sha256"]
            return "" if same else "has changed since it was stored (sha256)"
        if fileformat.is_ours(path):
            fileformat.read(path)
            return ""
    except BadFile as error:
        return str(error).removeprefix(f"{path}").lstrip(": ").rstrip(".")
    return "has no recorded hash"


def _record_file(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def record(path: Path) -> dict[str, Any]:
    """The record of the first download of a file; it outlives the file."""
    return read_json(_record_file(path))
