"""Tar files: write members without times and owners, scan them, and read the name before a member's bytes."""

import hashlib
import os
import re
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from typing import BinaryIO, NamedTuple

BLOCK = 512
PAX = re.compile(rb"\d+ path=([^\n]*)\n")
LONG = 9 * BLOCK  # header blocks before a member that may contain a long name


class Member(NamedTuple):
    """A file in a tar: its name, offset and size of its bytes, and their CRC-32."""

    name: str
    offset: int
    size: int
    crc: int


def split_name(name: str) -> tuple[str, str]:
    """A member's name -> key and extension, split as WebDataset does: at the first dot of the file name."""
    folder, slash, base = name.rpartition("/")
    key, _, ending = base.partition(".")
    return f"{folder}{slash}{key}", ending.lower()


def key_of(path: str) -> str:
    """A key for an image: its path without extension, dots replaced (a dot ends a key), long ones shortened."""
    folder, slash, base = path.rpartition("/")
    key = f"{folder}{slash}{base.rpartition('.')[0].replace('.', '_') or base.replace('.', '_')}".lstrip("/")
    with suppress(ValueError):
        header(f"{key}.seg.png", 0)
        return key
    return f"{hashlib.sha256(path.encode(errors='surrogateescape')).hexdigest()[:24]}"


def header(name: str, size: int) -> bytes:
    """The header block of a file.

    Raises:
        ValueError: if the name is too long for one block.
    """
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    return info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "surrogateescape")


def padded(size: int) -> int:
    """Bytes of a file padded to whole blocks."""
    return -(-size // BLOCK) * BLOCK


def write_member(file: BinaryIO, name: str, data: bytes) -> None:
    """Append a file to a tar."""
    file.write(header(name, len(data)))
    file.write(data)
    file.write(b"\0" * (padded(len(data)) - len(data)))


def members(path: str) -> Iterator[Member]:
    """The files in a tar, in order.

    Raises:
        ValueError: if it is compressed, not a tar file, or truncated.
    """
    with open(path, "rb") as file:
        head = file.read(4)
        if head[:2] == b"\x1f\x8b" or head[:3] == b"BZh" or head in (b"\x28\xb5\x2f\xfd", b"\xfd7zX"):
            raise ValueError(
                f"{path!r} is compressed; shards are plain tar files: their images are read one by one."
            )
        file.seek(0)
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for info in tar:
                    if not info.isreg() or info.issparse():
                        continue
                    place = file.tell()
                    file.seek(info.offset_data)
                    data = file.read(info.size)
                    if len(data) < info.size:
                        raise ValueError(f"{path!r} breaks off in {info.name!r}.")
                    file.seek(place)
                    yield Member(info.name, info.offset_data, info.size, zlib.crc32(data))
                if os.fstat(file.fileno()).st_size < tar.offset + BLOCK:
                    raise ValueError(f"{path!r} breaks off: it has no end.")
        except tarfile.TarError as error:
            raise ValueError(f"{path!r} is no whole tar file: {error}.") from None


def name_before(blocks: bytes) -> str | None:
    """The name of the member whose bytes follow the header `blocks`; None: its header starts earlier."""
    own = blocks[-BLOCK:]
    info = tarfile.TarInfo.frombuf(own, "utf-8", "surrogateescape")
    for count in range(1, len(blocks) // BLOCK - 1):
        extra = blocks[-BLOCK * (count + 2) : -BLOCK * (count + 1)]
        kind = extra[156:157]
        if kind not in (b"x", b"L") or extra[257:262] != b"ustar":
            continue
        with suppress(tarfile.HeaderError):
            size = tarfile.TarInfo.frombuf(extra, "utf-8", "surrogateescape").size
            if padded(size) == count * BLOCK:
                text = blocks[-BLOCK * (count + 1) : -BLOCK][:size]
                if kind == b"L":
                    return text.rstrip(b"\0").decode("utf-8", "surrogateescape")
                match = PAX.search(text)
                return match[1].decode("utf-8", "surrogateescape") if match else info.name
    return info.name
