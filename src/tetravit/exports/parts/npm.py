"""Files of a package of npm: from a folder or archive that the user names, or fetched once by npm and kept."""

import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tetravit.weights.store import home, lock, offline

PATIENCE_S = 600
MANIFEST = "package.json"


@dataclass(frozen=True)
class Package:
    """A version of a package. hashes: the sha256 of each file that is needed, by its place in the package."""

    name: str
    version: str
    hashes: Mapping[str, str]

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


@dataclass(frozen=True)
class Files:
    """Files of a package by their places in it, and its version."""

    version: str
    contents: Mapping[str, bytes]


def files(package: Package, source: str | os.PathLike[str] | None = None) -> Files:
    """The files of `package`.

    Args:
        package: its name, its version and the files that are needed.
        source: where it lies: its folder, a node_modules with it, or the .tgz of `npm pack`; another version is
            taken as it is. None: what an earlier call has kept, else fetched by npm.

    Raises:
        ValueError: if `source` is not that package, a file of the named version has another hash, or it cannot be
            fetched.
    """
    place = Path(source) if source is not None else _kept(package)
    read = _read(place, package)
    if source is None or read.version == package.version:
        for name, known in package.hashes.items():
            if hashlib.sha256(read.contents[name]).hexdigest() != known:
                raise ValueError(f"{place}: {name} is not that of {package} (sha256).")
    return read


def _read(place: Path, package: Package) -> Files:
    """The files of a package in a folder or an archive.

    Raises:
        ValueError: if they are not there.
    """
    try:
        contents = _of_archive(place, package) if place.is_file() else _of_folder(place, package)
        about = json.loads(contents.pop(MANIFEST))
        if about["name"] != package.name:
            raise KeyError
        return Files(str(about["version"]), contents)
    except (KeyError, TypeError, ValueError, FileNotFoundError, tarfile.TarError):
        raise ValueError(
            f"{place} is not the npm package {package.name}: its folder, a node_modules with it or the .tgz of"
            f" `npm pack {package}`."
        ) from None


def _of_folder(place: Path, package: Package) -> dict[str, bytes]:
    inner = place / package.name
    root = inner if inner.is_dir() else place
    return {name: (root / name).read_bytes() for name in (MANIFEST, *package.hashes)}


def _of_archive(place: Path, package: Package) -> dict[str, bytes]:
    with tarfile.open(place) as archive:
        contents = {}
        for name in (MANIFEST, *package.hashes):
            member = archive.extractfile(f"package/{name}")
            if member is None:
                raise KeyError(name)
            contents[name] = member.read()
    return contents


def _kept(package: Package) -> Path:
    """The archive in the cache, fetched where it is not there.

    Raises:
        ValueError: if it cannot be fetched.
    """
    path = home() / "npm" / f"{package.name}-{package.version}.tgz"
    if path.is_file():
        return path
    cure = f"On a connected machine: `npm pack {package}`; here: --runtime FILE.tgz"
    lacks = f"{package} is not in {home()}"
    if offline():
        raise ValueError(f"{lacks}, and TETRAVIT_OFFLINE is set. {cure}.")
    program = shutil.which("npm")
    if program is None:
        raise ValueError(f"{lacks}, and npm, which fetches it, is not installed. {cure}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with lock(path), tempfile.TemporaryDirectory(dir=path.parent) as folder:
        if path.is_file():  # another process was faster
            return path
        command = [program, "pack", str(package), "--silent", "--pack-destination", folder]
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE_S)
            why = "" if done.returncode == 0 else _last_line(done.stderr)
        except subprocess.TimeoutExpired:
            why = f"npm did not finish within {PATIENCE_S} s"
        archives = list(Path(folder).glob("*.tgz"))
        if why or len(archives) != 1:
            raise ValueError(f"{lacks}, and cannot be fetched ({why or 'npm wrote no archive'}). {cure}.")
        os.replace(archives[0], path)
    return path


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip().rstrip(".") if lines else "npm failed"
