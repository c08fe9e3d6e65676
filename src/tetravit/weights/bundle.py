"""Bundles: weights in one archive, for a machine without a network."""

import io
import json
import re
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

from tetravit import weights
from tetravit.files import atomic
from tetravit.weights import store
from tetravit.weights.base import Source
from tetravit.weights.download import CHUNK, Patience
from tetravit.weights.fileformat import BadFile

Members = dict[str, tuple[int, Callable[[], Any]]]


def bundle(
    names: Sequence[str], out: Path, *, accept_license: bool = False, patience: Patience | None = None
) -> Path:
    """Pack weights into one archive for a machine without a network; `unbundle` installs them there.

    Args:
        names: rows of the catalogue; missing files are downloaded.
        out: a .zip or .tar file.
        accept_license, patience: as in `fetch`.

    Raises:
        ValueError: for another file extension; else as `fetch`.
    """
    if out.suffix not in (".zip", ".tar"):
        raise ValueError(f"A bundle is a .zip or .tar file; got {str(out)!r}.")
    rows: list[dict[str, Any]] = []
    files: dict[str, Path] = {}
    for name in names:
        got = store.fetch(name, accept_license=accept_license, patience=patience)
        url = got.source.url if got.source else ""
        row = {"name": name, "url": url, "file": got.path.name, "size": got.path.stat().st_size}
        rows.append({**row, "sha256": store.sha256_of(got.path)})
        files[f"files/{got.path.name}"] = got.path
    manifest = json.dumps({"format": 1, "weights": rows}, indent=1).encode()
    with atomic(out) as file:
        if out.suffix == ".zip":
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                archive.writestr("manifest.json", manifest)
                for member, path in files.items():
                    archive.write(path, member)
        else:
            _write_tar(file, manifest, files)
    return out


def unbundle(path: Path) -> list[str]:
    """Unpack the weights of a bundle into the cache, each verified.

    Returns:
        Their names.

    Raises:
        BadFile: if the archive is not a bundle, contains files missing in its manifest, or was changed.
    """
    with _archive(path) as members:
        rows = _manifest(path, members)
        for row in rows:
            target = store.imported(row["name"]) if not row["url"] else store.place(row["url"])
            known = next((s.sha256 for s in _sources(row["name"]) if s.url == row["url"]), "")
            target.parent.mkdir(parents=True, exist_ok=True)
            with store.lock(target):
                part = target.with_name(target.name + ".import")
                size, source = members[f"files/{row['file']}"]
                with part.open("wb") as file, source() as content:
                    shutil.copyfileobj(_Limited(content, size), file, CHUNK)
                if store.sha256_of(part) != row["sha256"] or not row["sha256"].startswith(known):
                    part.unlink()
                    raise BadFile(f"{path}: {row['file']!r} has changed since it was packed (sha256).")
                store.accept(f"{path}: {row['file']!r}", part, target, store.record(target).get("sha256", ""))
    return [row["name"] for row in rows]


def _write_tar(file: IO[bytes], manifest: bytes, files: dict[str, Path]) -> None:
    with tarfile.open(fileobj=file, mode="w:") as archive:
        head = tarfile.TarInfo("manifest.json")
        head.size = len(manifest)
        archive.addfile(head, io.BytesIO(manifest))
        for member, path in files.items():
            info = tarfile.TarInfo(member)
            info.size = path.stat().st_size
            with path.open("rb") as content:
                archive.addfile(info, content)


@contextmanager
def _archive(path: Path) -> Iterator[Members]:
    """The members of a .zip or .tar: name -> (size, open function). Anything but a plain file is an error."""
    members: Members = {}

    def add(name: str, size: int, plain: bool, source: Callable[[], Any]) -> None:
        if not plain or not re.fullmatch(r"manifest\.json|files/[\w.-]+", name) or ".." in name:
            raise BadFile(f"{path} is no bundle of weights: member {name[:80]!r} does not belong there.")
        if name in members:
            raise BadFile(f"{path} is no bundle of weights: member {name[:80]!r} is there twice.")
        members[name] = size, source

    try:
        with path.open("rb") as file:
            start = file.read(4)
        if start == b"PK\x03\x04":
            with zipfile.ZipFile(path) as archive:
                for info in archive.infolist():
                    kind = stat.S_IFMT(info.external_attr >> 16)
                    plain = kind in (0, stat.S_IFREG) and info.compress_type == zipfile.ZIP_STORED
                    add(info.filename, info.file_size, plain, partial(archive.open, info))
                yield members
        else:
            with tarfile.open(path, "r:") as tar:
                for member in tar.getmembers():
                    add(
                        member.name,
                        member.size,
                        member.isreg(),
                        partial(tar.extractfile, member),
                    )
                yield members
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, UnicodeError, ValueError) as error:
        if isinstance(error, BadFile):
            raise
        raise BadFile(f"{path} is no bundle of weights, or is damaged ({error}).") from None


def _manifest(path: Path, members: Members) -> list[dict[str, Any]]:
    """The rows of a bundle, checked against its members."""
    try:
        size, source = members["manifest.json"]
        with source() as file:
            table = json.loads(file.read(min(size, 1 << 24)))
        rows: list[dict[str, Any]] = table["weights"]
        expected = {"manifest.json", *(f"files/{row['file']}" for row in rows)}
        for row in rows:
            texts = [row[key] for key in ("name", "url", "file", "sha256")]
            if table["format"] != 1 or not all(isinstance(text, str) for text in texts):
                raise TypeError
            store.imported(row["name"])
            if row["url"] and row["url"] not in {s.url for s in _sources(row["name"])}:
                raise BadFile(
                    f"{path} is no bundle of weights: {row['url']!r} is not where {row['name']} is from."
                )
    except (KeyError, TypeError, AttributeError) as error:
        raise BadFile(f"{path} is no bundle of weights: its manifest is not one ({error}).") from None
    if expected != set(members):
        odd = sorted(expected ^ set(members))[0]
        raise BadFile(f"{path} is no bundle of weights: member {odd!r} and the manifest differ.")
    return rows


class _Limited:
    """Reads at most `size` bytes of a file."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self.file, self.left = file, size

    def read(self, count: int = -1) -> bytes:
        data = self.file.read(min(count, self.left) if count >= 0 else self.left)
        self.left -= len(data)
        return data


def _sources(name: str) -> tuple[Source, ...]:
    return weights.CHECKPOINTS[name].sources if name in weights.CHECKPOINTS else ()
