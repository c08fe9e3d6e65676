"""Pack a file-based data set into tar shards: in parallel, atomically and reproducibly."""

import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from tetravit.data.audit.layout import parts_in
from tetravit.data.build import build_dataset
from tetravit.data.config import DataConfig
from tetravit.data.datasets import Dataset
from tetravit.data.files import check_folder, check_target, ending
from tetravit.data.guess import guess
from tetravit.data.label_maps import LabelMaps, read_labels
from tetravit.data.objects import ObjectSet
from tetravit.data.parts import PARTS, Part
from tetravit.data.permutation import Permutation
from tetravit.data.processes import in_parallel
from tetravit.data.shards.index import META, Meta, read_meta
from tetravit.data.shards.scan import index_shards, scan_shard
from tetravit.data.shards.tar import BLOCK, key_of, padded, write_member
from tetravit.files import atomic, read_json, try_lock, write_json

PLAN = ".pack.json"
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
END = b"\0" * (2 * BLOCK)  # end marker of a tar file

ShardOrder = Literal["mixed", "sorted"]


class Item(NamedTuple):
    """An image to pack. label: text of KEY.cls or KEY.json; maps: its label map."""

    key: str
    path: str
    label: str = ""
    end: str = ""
    maps: tuple[str, Any, Any] | None = None  # path, conversion, colours


def parse_size(text: str) -> int:
    """Parse "256MB", "1GiB", "500000" into bytes.

    Raises:
        ValueError: for an invalid text, or less than 64 KB.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]i?B)?\s*", text, re.I)
    size = int(float(match[1]) * UNITS[(match[2] or "").upper()]) if match else 0
    if size < 64_000:
        raise ValueError(f"A size of shards is 64KB or more, such as 256MB or 1GiB; got {text!r}.")
    return size


def pack(
    root: str | os.PathLike[str],
    to: str | os.PathLike[str],
    *,
    name: str | None = None,
    options: dict[str, Any] | None = None,
    shard_size: int = 256_000_000,
    order: ShardOrder = "mixed",
    workers: int = 0,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Meta:
    """Write the images of a data set, their labels and an index as tar shards; continues an interrupted call.

    Args:
        root: of the data set, read only. to: folder of the shards, outside the root.
        name: the data set in the menu; None: detected from the names in the folder. options: of its constructor.
        shard_size: approximate bytes per shard.
        order: "mixed": training images are shuffled over the shards; "sorted": all in the order of their paths.
        workers: processes; 0: one per core.
        progress: called with the number of finished shards and the total.

    Raises:
        ValueError: if the set has no files, images have several classes, or the folder contains other shards.
        OSError: from the system; files written so far are complete.
    """
    base, out = Path(root).absolute(), Path(to).absolute()
    check_folder(root)
    check_target(to)
    if out.resolve().is_relative_to(base.resolve()):
        raise ValueError(f"Shards are written outside of the data; {str(to)!r} lies in {str(root)!r}.")
    name = name or guess(base)
    sets = _sets(base, name, dict(options or {}))
    kind, names = next((s.info.kind, s.class_names) for s in sets.values())
    jobs = Jobs({part: Plan(part, dataset, out, shard_size, order) for part, dataset in sets.items()})
    plan = {"kind": kind, "shard_size": shard_size, "order": order, "files": jobs.fingerprint}
    out.mkdir(parents=True, exist_ok=True)
    with _alone(out):
        old = read_json(out / PLAN)
        if old != plan and (old or any(out.glob("*.tar"))):
            raise ValueError(
                f"{str(to)!r} holds other shards, or the data or options have changed since; take another folder, or"
                " remove it."
            )
        if old == plan and (out / META).exists():
            progress(len(jobs), len(jobs))
            return read_meta(str(out))
        write_json(out / PLAN, plan)
        in_parallel(_write_shard, jobs, workers, progress)
        return index_shards(str(out), class_names=list(map(str, names)), workers=workers)


def _sets(base: Path, name: str, options: dict[str, Any]) -> dict[Part, Dataset]:
    """The existing splits.

    Raises:
        ValueError: if one cannot be read, or its images cannot be packed.
    """
    sets: dict[Part, Dataset] = {}
    there = parts_in(base)
    error: ValueError | None = None
    for part in PARTS:
        config = DataConfig.model_validate(
            {"name": name, "root": str(base), "batch_size": 1, "options": options}
        )
        try:
            dataset = build_dataset(config, part)
        except ValueError as problem:
            if part in there or "has no option" in str(problem):
                raise
            error = error or problem
            continue
        info = dataset.info
        if info.multi_label or info.several:
            raise ValueError("Shards hold one class an image; this data set has several.")
        sets[part] = dataset
    if not sets:
        assert error is not None
        raise error
    return sets


class Plan:
    """Assign the images of a split to shards."""

    def __init__(
        self, part: Part, dataset: Dataset, folder: Path, shard_size: int, order: ShardOrder
    ) -> None:
        self.part, self.dataset, self.folder = part, dataset, folder
        count = len(dataset.table) if isinstance(dataset, ObjectSet) else len(dataset)
        mix = Permutation(count, 1) if order == "mixed" and part == "train" else None
        self.rows = np.array([mix(i) if mix else i for i in range(count)], dtype=np.int64)
        digest, ends, filled = hashlib.sha256(part.encode()), list[int](), 0
        for place, row in enumerate(self.rows.tolist()):
            path = self.path(row)
            status = os.stat(path)
            digest.update(
                f"{path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode(errors="surrogateescape")
            )
            size = 2 * BLOCK + padded(status.st_size)
            if filled and filled + size > shard_size:
                ends.append(place)
                filled = 0
            filled += size
        self.ends = [*ends, count]
        self.fingerprint = digest.hexdigest()
        self.keys: dict[str, int] = {}
        self._repeated = self._repeats()

    def path(self, row: int) -> str:
        if isinstance(self.dataset, ObjectSet):
            return os.path.join(self.dataset.folder, self.dataset.table.name(row))
        return self.dataset.path(row)

    def name(self, row: int) -> str:
        return self.dataset.table.name(row) if isinstance(self.dataset, ObjectSet) else self.dataset.key(row)

    def _repeats(self) -> set[str]:
        """Keys shared by several images, whose names differ only in extension or dots."""
        seen, twice = set[int](), set[int]()
        for row in range(len(self.rows)):
            value = hash(key_of(self.name(row)))
            (twice if value in seen else seen).add(value)
        if not twice:
            return set()
        return {key for row in range(len(self.rows)) if hash(key := key_of(self.name(row))) in twice}

    def key(self, row: int) -> str:
        key = key_of(self.name(row))
        return f"{key}-{row}" if key in self._repeated else key

    def items(self, number: int) -> list[Item]:
        """The images of a shard."""
        start = self.ends[number - 1] if number else 0
        return [self._item(int(row)) for row in self.rows[start : self.ends[number]]]

    def _item(self, row: int) -> Item:
        dataset, key, path = self.dataset, self.key(row), self.path(row)
        if isinstance(dataset, LabelMaps):
            return Item(key, path, maps=(str(dataset.pairs[row][1]), dataset.convert, dataset.colours))
        if isinstance(dataset, ObjectSet):
            return Item(key, path, json.dumps(_objects(dataset, row)), "json")
        if dataset.labels is not None:
            return Item(key, path, str(int(dataset.labels[row])), "cls")
        return Item(key, path)


class Jobs(Sequence[tuple[str, list[Item]]]):
    """Work of a writer process: the path and images of each shard, listed on demand."""

    def __init__(self, plans: dict[Part, Plan]) -> None:
        self.plans = plans
        self.places = [(part, i) for part, plan in plans.items() for i in range(len(plan.ends))]
        self.fingerprint = {part: plan.fingerprint for part, plan in plans.items()}

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: Any) -> Any:
        part, number = self.places[index]
        path = self.plans[part].folder / f"{part}-{number:06d}.tar"
        return str(path), ([] if path.exists() else self.plans[part].items(number))


def _write_shard(job: tuple[str, list[Item]]) -> None:
    """Write a missing shard, and store its rows for the index."""
    path, items = job
    if items:
        with atomic(path) as file:
            for item in items:
                data = Path(item.path).read_bytes()
                write_member(file, f"{item.key}.{ending(item.path).lstrip('.')}", data)
                if item.maps is not None:
                    write_member(file, f"{item.key}.seg.png", _label_map(*item.maps))
                elif item.end:
                    write_member(file, f"{item.key}.{item.end}", item.label.encode())
            file.write(END)
    scan_shard(path)


def _label_map(path: str, convert: Any, colours: Any) -> bytes:
    """The labels of a label map, class indices from 0, as a PNG of 8 or 16 bits."""
    labels = read_labels(Path(path), colours)
    labels = labels if convert is None else convert(labels)
    array = labels.numpy()
    buffer = io.BytesIO()
    Image.fromarray(array.astype(np.uint8 if array.max(initial=0) < 256 else np.uint16)).save(buffer, "png")
    return buffer.getvalue()


def _objects(dataset: ObjectSet, row: int) -> dict[str, Any]:
    """An image's objects in COCO's form, with class names instead of ids."""
    table = dataset.table
    height, width = map(int, table.sizes[row])
    if not height or not width or table.shares:
        height, width = map(int, dataset.stored_size(row))
    scale = np.array([width, height] * 2) if table.shares else 1.0
    annotations = []
    for k in table.objects(row).tolist():
        x1, y1, x2, y2 = (table.boxes[k] * scale).tolist()
        annotation: dict[str, Any] = {
            "category": str(dataset.class_names[int(table.labels[k])]),
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "iscrowd": int(table.crowds[k]),
        }
        if table.areas[k] > 0:
            annotation["area"] = float(table.areas[k])
        outline = table.segmentation(k, height, width)
        if outline is not None:
            annotation["segmentation"] = outline
        annotations.append(annotation)
    return {"image_id": int(table.ids[row]), "height": height, "width": width, "annotations": annotations}


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Raises: ValueError if another process writes into the folder."""
    file = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if not try_lock(file):
            raise ValueError(f"Another process writes shards into {str(folder)!r}.")
        yield
    finally:
        os.close(file)
