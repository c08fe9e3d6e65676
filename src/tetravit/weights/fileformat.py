"""Our one-file format: safetensors with a header that describes how to use the weights.

A file is 8 bytes with the length of the header, the header (JSON), and the concatenated tensors, as safetensors
defines it: every safetensors reader can read these files. Our metadata are an entry "tetravit" (a `Header` as JSON)
and an entry "sha256" over it. The header has a canonical spelling, so that any other spelling is detected as a
change.

Tensors are not copied on reading: they are views of the mapped file, private to the process.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from tetravit.files import atomic
from tetravit.structures import Preprocess

FORMAT = 1
FRAMEWORK = "pt"  # "format" in the metadata: the framework of the tensors, for other programs
LONGEST_HEADER = 100_000_000  # bytes; the limit of safetensors itself
ALIGNMENT = 64  # bytes; the tensors start on a cache line

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


class BadFile(ValueError):
    """A damaged or foreign file; the text names it and the fault."""


class CutOff(BadFile):
    """A truncated file: shorter than stated in its header."""


def package_version() -> str:
    try:
        return version("tetravit")
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "unknown"


@dataclass(frozen=True)
class Header:
    """The description of the weights in a file.

    model, options: the arguments of `create_model` that rebuild the module; head: the menu name of a dense head, None
    for a classifier. recipe: TOML text of the run that trained the weights. source: origin of the weights.
    thresholds: per-class probability thresholds of a multi-label model; else (). sha256: one per tensor, over its
    name, dtype, shape and bytes; written by `save`.
    """

    model: str
    options: Mapping[str, Any] = field(default_factory=dict)
    task: str = "classify"
    head: str | None = None
    num_classes: int = 1000
    class_names: tuple[str, ...] = ()
    preprocess: Preprocess = field(default_factory=Preprocess)
    recipe: str = ""
    licence: str = ""
    source: str = ""
    version: str = field(default_factory=package_version)
    sha256: Mapping[str, str] = field(default_factory=dict)
    thresholds: tuple[float, ...] = ()

    @property
    def fingerprint(self) -> str:
        """One sha256 over the names and contents of all tensors: equal weights have equal fingerprints."""
        return fingerprint(self.sha256)

    def to_json(self) -> str:
        table = {"format": FORMAT, **asdict(self)}
        if not self.thresholds:  # without thresholds, the spelling of earlier versions is kept
            del table["thresholds"]
        return _spell(table)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Parse `to_json`; a missing field or a wrong type raises ValueError, TypeError or KeyError."""
        table = {"thresholds": (), **json.loads(text)}
        if table.pop("format") != FORMAT or set(table) != {f.name for f in fields(cls)}:
            raise ValueError("other fields")
        preprocess = table["preprocess"]
        for name in ("mean", "std"):
            preprocess[name] = tuple(float(v) for v in preprocess[name])
        if isinstance(preprocess["size"], list):
            preprocess["size"] = tuple(preprocess["size"])
        table["preprocess"] = Preprocess(**preprocess)
        table["class_names"] = tuple(table["class_names"])
        table["thresholds"] = tuple(float(v) for v in table["thresholds"])
        for name in ("model", "task", "recipe", "licence", "source", "version"):
            if not isinstance(table[name], str):
                raise TypeError(name)
        return cls(**table)


def fingerprint(digests: Mapping[str, str]) -> str:
    """One sha256 over the digests of named tensors, independent of their order."""
    return hashlib.sha256("".join(digests[name] for name in sorted(digests)).encode()).hexdigest()


def digest(name: str, tensor: Tensor) -> str:
    """sha256 of a tensor's name, dtype, shape and bytes. Large tensors are hashed without holding the GIL."""
    hasher = hashlib.sha256(f"{name}|{NAMES[tensor.dtype]}|{list(tensor.shape)}|".encode())
    hasher.update(_bytes(tensor))
    return hasher.hexdigest()


def digests(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """`digest` of every tensor, on all cores of this process."""
    with ThreadPoolExecutor(max_workers=min(8, len(_cores()))) as pool:
        return dict(zip(tensors, pool.map(digest, tensors, tensors.values()), strict=True))


def save(path: str | Path, tensors: Mapping[str, Tensor], header: Header) -> Header:
    """Write a checkpoint atomically, replacing an older one.

    Args:
        path: the file to write; its folder must exist.
        tensors: names and values, on any device.
        header: description of the weights; `sha256` is filled in here.

    Returns:
        The header as written.

    Raises:
        ValueError: for an unsupported type of tensor.
        OSError: if the file cannot be written; an older file is unchanged.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in NAMES or tensor.layout != torch.strided:
            raise ValueError(
                f"{name!r} cannot be written: it is a {tensor.dtype} tensor with layout {tensor.layout}."
            )
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    ready = {name: tensors[name].detach().cpu().contiguous() for name in order}
    header = replace(header, sha256=digests(ready))
    shapes = {name: (NAMES[tensor.dtype], list(tensor.shape)) for name, tensor in ready.items()}
    with atomic(path) as file:
        file.write(_spell_header(header.to_json(), shapes))
        for tensor in ready.values():
            file.write(_bytes(tensor))
    return header


def read(
    path: str | Path, verify: bool = True, device: torch.device | str = "cpu"
) -> tuple[dict[str, Tensor], Header]:
    """Read a checkpoint written by `save`.

    Args:
        path: the file.
        verify: compare the sha256 of every tensor. This reads the whole file, at the speed of hashlib per core;
            otherwise the tensors are mapped in milliseconds and read from disk on access.
        device: of the returned tensors.

    Raises:
        BadFile: if the file is truncated, changed (the tensor is named), foreign, or of another format version.
        OSError: if it cannot be opened.
    """
    path = Path(path)
    header, index = _open(path)
    tensors = map_tensors(path, index)
    if verify:
        actual = digests(tensors)
        changed = [name for name in sorted(actual) if actual[name] != header.sha256.get(name)]
        if changed or set(actual) != set(header.sha256):
            more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            changed_part = f"tensor {changed[0]!r}{more}" if changed else "the list of tensors"
            raise BadFile(f"{path}: {changed_part} has changed since it was written (sha256).")
    if torch.device(device).type != "cpu":
        tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
    return tensors, header


def read_header(path: str | Path) -> Header:
    """The header of a checkpoint; its tensors are neither read nor verified. Raises as `read`."""
    return _open(Path(path))[0]


def is_ours(path: str | Path) -> bool:
    """Whether a file is in our format, of any version, regardless of damage to its tensors.

    Raises:
        CutOff: if it is a truncated safetensors file.
    """
    try:
        return "tetravit" in read_index(path).metadata
    except CutOff:
        raise
    except (BadFile, OSError):
        return False


@dataclass(frozen=True)
class Index:
    """The header of any safetensors file. tensors: name -> (dtype, shape, first byte, last byte + 1)."""

    metadata: dict[str, str]
    tensors: dict[str, tuple[str, list[int], int, int]]
    raw: bytes
    size: int


def read_index(path: str | Path) -> Index:
    """Read and check the header of a safetensors file: every tensor lies inside the file, without overlaps.

    Raises:
        BadFile: if it is not a safetensors file, or truncated.
    """
    path = Path(path)
    foreign = BadFile(f"{path} is not a safetensors file, or its header is damaged.")
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 10 or not 2 <= length <= LONGEST_HEADER:
            raise foreign
        if 8 + length > size:
            head = file.read(16)
            raise _cut_off(path, size, 8 + length) if head.startswith(b'{"') else foreign
        raw = file.read(length)
    try:
        table = json.loads(raw)
        metadata = table.pop("__metadata__", {})
        tensors = {
            name: (
                e["dtype"],
                [int(s) for s in e["shape"]],
                int(e["data_offsets"][0]),
                int(e["data_offsets"][1]),
            )
            for name, e in table.items()
        }
        if not all(isinstance(v, str) for v in metadata.values()):
            raise TypeError
        end = 0
        for kind, shape, first, last in sorted(tensors.values(), key=lambda t: t[2:]):
            if first != end or min(shape, default=0) < 0:
                raise ValueError
            if last - first != math.prod(shape) * DTYPES[kind].itemsize:
                raise ValueError
            end = last
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError):
        raise foreign from None
    whole = 8 + length + end
    if size < whole:
        raise _cut_off(path, size, whole)
    if size > whole:
        raise BadFile(f"{path} has {size - whole} bytes too many; it should have {whole}.")
    return Index(metadata, tensors, raw, size)


def map_tensors(path: str | Path, index: Index) -> dict[str, Tensor]:
    """The tensors of a safetensors file as views of the mapped file, copied if they are not aligned."""
    whole = map_file(path, index.size)
    start = 8 + len(index.raw)
    tensors = {}
    for name, (kind, shape, first, last) in index.tensors.items():
        tensors[name] = cast(whole[start + first : start + last], DTYPES[kind]).view(shape)
    return tensors


def map_file(path: str | Path, size: int) -> Tensor:
    """A file as uint8 (size,), mapped copy-on-write."""
    storage = torch.UntypedStorage.from_file(str(path), False, size)
    return torch.empty(0, dtype=torch.uint8).set_(storage)  # type: ignore[arg-type]


def cast(data: Tensor, dtype: torch.dtype) -> Tensor:
    """Bytes (n,) as numbers (n / itemsize,), without a copy if they are aligned."""
    if data.storage_offset() % dtype.itemsize:
        data = data.clone()
    return data.view(dtype)


def _open(path: Path) -> tuple[Header, Index]:
    index = read_index(path)
    text = index.metadata.get("tetravit")
    if text is None:
        cure = f"`tetravit convert {path} --as NAME.TAG` makes it ours"
        raise BadFile(f"{path} is a safetensors file of another program; {cure}.")
    damaged = BadFile(f"{path}: the header has changed since it was written (sha256).")
    shapes = {name: (kind, shape) for name, (kind, shape, _, _) in index.tensors.items()}
    spelled = _spell_header(text, shapes, index.metadata.get("format"))
    if spelled[8:] != index.raw or index.metadata.get("sha256") != hashlib.sha256(text.encode()).hexdigest():
        raise damaged
    try:
        number = json.loads(text).get("format")
        if number != FORMAT:
            raise BadFile(f"{path} has format {number!r}; this version of tetravit reads format {FORMAT}.")
        return Header.from_json(text), index
    except BadFile:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise BadFile(f"{path}: the header is not one that tetravit writes.") from None


def _spell_header(
    text: str, shapes: Mapping[str, tuple[str, list[int]]], framework: str | None = FRAMEWORK
) -> bytes:
    """The canonical first bytes of a file: length and header, tensors in the given order, padded."""
    table: dict[str, Any] = {
        "__metadata__": {
            **({"format": framework} if framework else {}),  # absent in files of the first versions
            "sha256": hashlib.sha256(text.encode()).hexdigest(),
            "tetravit": text,
        }
    }
    end = 0
    for name, (kind, shape) in shapes.items():
        first, end = end, end + math.prod(shape) * DTYPES[kind].itemsize
        table[name] = {"dtype": kind, "shape": shape, "data_offsets": [first, end]}
    raw = json.dumps(table, separators=(",", ":")).encode()
    raw += b" " * (-(8 + len(raw)) % ALIGNMENT)
    return len(raw).to_bytes(8, "little") + raw


def _spell(table: Mapping[str, Any]) -> str:
    return json.dumps(table, sort_keys=True, separators=(",", ":"), default=str)


def _bytes(tensor: Tensor) -> memoryview:
    return memoryview(tensor.detach().reshape(-1).view(torch.uint8).numpy())


def _cores() -> Any:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)


def _cut_off(path: Path, size: int, whole: int) -> "CutOff":
    return CutOff(
        f"{path} is truncated: {size} bytes on disk, {whole} by its header; copy or download it again."
    )
