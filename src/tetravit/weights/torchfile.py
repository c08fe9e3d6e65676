"""Files from `torch.save` of every version, without torch's reader: zip archives, sequences of pickles, tar archives.

Tensors of a zip archive are views of the mapped file; those of older formats are copied if they are not aligned. See
`pickles` for why no code in a file is ever run.
"""

import io
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from tetravit.weights.fileformat import BadFile, cast, map_file
from tetravit.weights.pickles import DAMAGE, DTYPES, Global, Machine, Refused, Storage, view_of

MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a file from torch < 1.6
PROTOCOL = 1001
LARGEST_PICKLE = 1 << 29  # bytes; the structure of a checkpoint, without its tensors
BROKEN = (zipfile.BadZipFile, tarfile.TarError, NotImplementedError, RuntimeError, zlib.error, *DAMAGE)


@dataclass(frozen=True)
class Contents:
    """The content of a file. inert: class names of objects that became records."""

    value: Any
    inert: tuple[str, ...]


def load(path: str | Path, verify: bool = True) -> Contents:
    """Read a file from `torch.save`. No code in the file is executed.

    Args:
        path: .pth, .pt, .bin, .pth.tar: the format is detected from the content.
        verify: compare the checksums of a zip archive; older formats have none.

    Raises:
        BadFile: if it is damaged (a damaged tensor is named), refers to code, or has another format.
        OSError: if it cannot be opened.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(4)
            if start == b"PK\x03\x04":
                return _zip(path, file, verify)
            file.seek(0)
            if tarfile.is_tarfile(file):
                file.seek(0)
                return _tar(file)
            file.seek(0)
            return _row(path, file)
    except Refused as refused:
        raise BadFile(
            f"{path} refers to {str(refused)!r}, which no tensor needs; it was not read and nothing was executed."
        ) from None
    except BadFile as error:
        text = str(error)
        raise BadFile(text if text.startswith(str(path)) else f"{path} cannot be read: {text}.") from None
    except BROKEN as error:
        raise BadFile(f"{path} cannot be read: it is cut off or damaged ({error}).") from None


def _zip(path: Path, file: IO[bytes], verify: bool) -> Contents:
    """torch >= 1.6: PREFIX/data.pkl, PREFIX/data/KEY, all records uncompressed."""
    archive = zipfile.ZipFile(file)
    records = {info.filename: info for info in archive.infolist()}
    main = next((name for name in records if name.endswith("/data.pkl")), None)
    if main is None:
        raise BadFile("it is a zip archive, but not one of torch.save")
    prefix = main.removesuffix("data.pkl")
    if f"{prefix}constants.pkl" in records:
        raise BadFile("it is a TorchScript program; save the state dict of the module instead")
    if f"{prefix}byteorder" in records and archive.read(f"{prefix}byteorder") != b"little":
        raise BadFile("its numbers are big-endian")
    if records[main].file_size > LARGEST_PICKLE:
        raise BadFile(f"its pickle is larger than {LARGEST_PICKLE} bytes")
    whole = map_file(path, path.stat().st_size)
    used: dict[str, tuple[zipfile.ZipInfo, Tensor]] = {}

    def storage(key: str, dtype: torch.dtype, count: int) -> Tensor:
        info = records[f"{prefix}data/{key}"]
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != count * dtype.itemsize:
            raise ValueError(f"storage {key!r} is compressed or of another size")
        if key not in used:
            used[key] = info, _record(file, whole, info)
        return used[key][1]

    machine = Machine(_storages(storage))
    value = machine.run(io.BytesIO(archive.read(main)))
    if verify:
        _check(value, used)
    return Contents(value, tuple(sorted(machine.inert)))


def _record(file: IO[bytes], whole: Tensor, info: zipfile.ZipInfo) -> Tensor:
    """The bytes of a stored record, as a view of the mapped file."""
    file.seek(info.header_offset)
    header = file.read(30)
    if header[:4] != b"PK\x03\x04":
        raise ValueError(f"record {info.filename!r} is not where the list says")
    name, extra = struct.unpack("<HH", header[26:30])
    first = info.header_offset + 30 + name + extra
    if first + info.file_size > len(whole):
        raise ValueError(f"record {info.filename!r} ends outside the file")
    return whole[first : first + info.file_size]


def _check(value: Any, used: dict[str, tuple[zipfile.ZipInfo, Tensor]]) -> None:
    """Compare the CRC-32 of every storage, on all cores."""
    with ThreadPoolExecutor() as pool:
        sums = pool.map(lambda entry: zlib.crc32(memoryview(entry[1].numpy())), used.values())
        for (info, data), checksum in zip(used.values(), sums, strict=True):
            if checksum != info.CRC:
                first, last = data.data_ptr(), data.data_ptr() + len(data)
                names = [n for n, t in named_tensors(value) if first <= t.data_ptr() < last]
                record = f"tensor {names[0]!r}" if names else f"record {info.filename!r}"
                raise BadFile(f"{record} has changed since it was written (CRC-32)")


def _row(path: Path, file: IO[bytes]) -> Contents:
    """torch 0.1.10 to 1.5: magic number, protocol, system, the object, keys, then the storages."""
    if Machine().run(file) != MAGIC:
        raise BadFile("it is a pickle, but not one of torch.save")
    if Machine().run(file) != PROTOCOL or Machine().run(file).get("little_endian") is not True:
        raise BadFile("it has another protocol, or big-endian numbers")
    start, sizes = file.tell(), {}

    def size(key: str, dtype: torch.dtype, count: int) -> None:
        sizes[key] = dtype.itemsize

    Machine(_storages(size)).run(file)  # structure only: the dtype and size of each storage
    keys = Machine().run(file)
    whole, data = map_file(path, path.stat().st_size), {}
    for key in keys:
        (count,) = struct.unpack("<q", file.read(8))
        first = file.tell()
        last = first + count * sizes[key]
        if count < 0 or last > len(whole):
            raise BadFile(f"it is cut off: storage {key!r} ends at byte {last} of {len(whole)}")
        data[key] = whole[first:last]
        file.seek(last)
    file.seek(start)
    machine = Machine(_storages(lambda key, dtype, count: data[key]))
    return Contents(machine.run(file), tuple(sorted(machine.inert)))


def _tar(file: IO[bytes]) -> Contents:
    """Before torch 0.1.10: members `storages`, `tensors` and `pickle`. Nothing is unpacked to disk."""
    with tarfile.open(fileobj=file, mode="r:") as archive:
        members = {m.name: m for m in archive.getmembers() if m.isreg()}
        if not {"storages", "tensors", "pickle"} <= set(members):
            raise BadFile("it is a tar archive, but not one of torch.save")
        storages, tensors, main = (_member(archive, members[n]) for n in ("storages", "tensors", "pickle"))
    known: dict[int, Any] = {}
    for _ in range(Machine().run(storages)):
        key, _, kind = Machine().run(storages)
        dtype = _dtype(kind)
        (count,) = struct.unpack("<q", storages.read(8))
        raw = bytearray(storages.read(count * dtype.itemsize))
        if len(raw) != count * dtype.itemsize:
            raise BadFile(f"it is cut off in storage {key!r}")
        numbers = torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0, dtype=dtype)
        known[int(key)] = Storage(numbers, dtype)
    for view, root, offset, count in Machine().run(storages):
        known[int(view)] = Storage(known[int(root)].data[offset : offset + count], known[int(root)].dtype)
    for _ in range(Machine().run(tensors)):
        key, storage, _ = Machine().run(tensors)
        ndim, _ = struct.unpack("<ii", tensors.read(8))
        dims = struct.unpack(f"<{2 * ndim + 1}q", tensors.read(8 * (2 * ndim + 1)))
        known[int(key)] = view_of(known[int(storage)], dims[-1], dims[:ndim], dims[ndim:-1])
    machine = Machine(lambda saved: saved[0] if isinstance(saved, tuple) else known[int(saved)])
    return Contents(machine.run(main), tuple(sorted(machine.inert)))


def _member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    file = archive.extractfile(member)
    assert file is not None  # a regular member has content
    return io.BytesIO(file.read())


def _storages(data: Callable[[str, torch.dtype, int], Tensor | None]) -> Callable[[Any], Any]:
    """Resolves the persistent ids of a file: ("storage", kind, key, device, count[, view])."""

    def persistent(saved: Any) -> Any:
        if saved[0] == "module":  # a module is saved with its source code, which is ignored
            return saved[1]
        label, kind, key, _, count, *view = saved
        if label != "storage" or not isinstance(count, int) or count < 0:
            raise ValueError("a persistent id that is no storage")
        dtype = _dtype(kind)
        raw = data(str(key), dtype, count)
        if raw is None:
            return Storage(None, dtype)
        numbers = cast(raw, dtype)
        if view and view[0] is not None:
            _, offset, count = view[0]
            numbers = numbers[offset : offset + count]
        return Storage(numbers, dtype)

    return persistent


def _dtype(kind: Any) -> torch.dtype:
    if not isinstance(kind, Global):
        raise TypeError("a storage without a type")
    return DTYPES[kind.name.rsplit(".", 1)[-1].removesuffix("Storage")]


def named_tensors(value: Any, prefix: str = "", depth: int = 5) -> Iterator[tuple[str, Tensor]]:
    """Every tensor inside dicts and lists, with the path to it."""
    if isinstance(value, Tensor):
        yield prefix, value
    elif depth and isinstance(value, (dict, list, tuple)):
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        for key, part in entries:
            yield from named_tensors(part, f"{prefix}.{key}" if prefix else str(key), depth - 1)
