"""Build the index of existing shards: find images and the labels that belong to them."""

import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import numpy as np

from tetravit.data.files import ENDINGS, check_folder, some
from tetravit.data.parts import NAMES as PART_NAMES
from tetravit.data.parts import PARTS
from tetravit.data.processes import in_parallel
from tetravit.data.shards.index import META, ROW, Meta, Shard, read_meta
from tetravit.data.shards.tar import BLOCK, Member, members, split_name
from tetravit.data.text import read_lines
from tetravit.data.upright import header, stored_size
from tetravit.files import atomic, replace_file, write_json
from tetravit.structures import DataKind

MAPS = ("seg.png", "mask.png", "seg", "mask", "labels.png")  # extensions of label maps
LABELS = ("cls", "cls.txt", "label", "label.txt", "index", "id", "txt")
Scan = dict[str, Any]


def index_shards(
    folder: str,
    *,
    class_names: Sequence[str] = (),
    workers: int = 0,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Meta:
    """Write the index of the tar files in a folder: DIR/train-000000.tar, DIR/train/0.tar, ...

    If no name contains a split, all shards are "train". Classes are in `KEY.cls` (an index or a name), in `KEY.json`
    under "label", or the folders of the keys; objects are in `KEY.json` under "annotations"; label maps are
    `KEY.seg.png` or `KEY.mask.png`. The scan of each shard is stored in `.NAME.rows`: an interrupted call continues
    with the next shard.

    Args:
        class_names: in class order; empty: those of classes.txt in the folder, else of an existing shards.json, else
            the labels themselves.

    Raises:
        ValueError: if there is no tar file, one is damaged, or images are of several kinds.
    """
    root = Path(folder)
    check_folder(folder)
    files = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.tar"))
    if not files:
        raise ValueError(f"There are no .tar files in {folder!r}.")
    scans = dict(
        zip(files, in_parallel(scan_shard, [str(root / f) for f in files], workers, progress), strict=True)
    )
    scans = {name: scan for name, scan in scans.items() if len(scan["rows"])}
    kinds = {str(scan["kind"]) for scan in scans.values()}
    if len(kinds) != 1:
        raise ValueError(
            f"The shards in {folder!r} hold {some(sorted(kinds)) or 'no image'}; one kind is read."
        )
    kind = cast(DataKind, kinds.pop())
    listed = root / "classes.txt"
    if not class_names and listed.is_file():
        class_names = read_lines(listed)
    if not class_names and (root / META).is_file():
        with suppress(ValueError):
            class_names = read_meta(folder).class_names
    names = _class_names([x for scan in scans.values() for x in scan["labels"]], class_names, kind, folder)
    parts: dict[str, list[str]] = {}
    for name in scans:
        parts.setdefault(part_of_shard(name), []).append(name)
    annotated = {
        part: [(f"{name}/{image}", table) for name in mine for image, table in scans[name]["annotations"]]
        for part, mine in parts.items()
    }
    if kind == "detect":
        _add_categories(annotated.values(), names)
    meta_parts = {}
    for part, mine in parts.items():
        if kind == "detect":
            replace_file(root / f"{part}.json", json.dumps(_coco(annotated[part], names)).encode())
        meta_parts[part] = _write_part(root, part, mine, scans, kind, names)
    meta = Meta(kind, tuple(names), meta_parts)
    write_json(root / META, meta.row())
    for name in files:
        rows_file(str(root / name)).unlink(missing_ok=True)
    return meta


def part_of_shard(name: str) -> str:
    """The split named in a shard or its folder, as one of its words; "train" if there is none."""
    for text in reversed(name.lower().split("/")):
        words = {word.rstrip("0123456789") for word in re.split(r"[\W_]+", text)}
        for part in PARTS:
            if words & set(PART_NAMES[part]):
                return part
    return "train"


def rows_file(shard: str) -> Path:
    """Where the scan of a shard is stored until the index is written."""
    folder, name = os.path.split(shard)
    return Path(folder, f".{name}.rows")


def scan_shard(path: str) -> Scan:
    """The content of a shard: rows of its images and of their label maps, kind, raw classes, annotations."""
    kept = rows_file(path)
    status = os.stat(path)
    mark = f"{status.st_size} {status.st_mtime_ns}"
    if kept.exists():
        try:
            with np.load(kept, allow_pickle=False) as saved:
                if str(saved["mark"]) == mark:
                    return _unpacked(saved)
        except (ValueError, OSError, KeyError):
            pass
    scan = _scan(path)
    scan["mark"] = mark
    buffer = io.BytesIO()
    np.savez(
        buffer,
        rows=scan["rows"],
        targets=scan["targets"],
        text=np.array(json.dumps({k: scan[k] for k in ("kind", "labels", "annotations", "sha256", "size")})),
        mark=np.array(mark),
    )
    with suppress(OSError):  # a read-only folder: the scan is not stored
        replace_file(kept, buffer.getvalue())
    return scan


def _unpacked(saved: Any) -> Scan:
    return {"rows": saved["rows"], "targets": saved["targets"], **json.loads(str(saved["text"]))}


def _scan(path: str) -> Scan:
    groups: dict[str, dict[str, Member]] = {}
    for member in members(path):
        key, end = split_name(member.name)
        groups.setdefault(key, {})[end] = member
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while data := file.read(1 << 22):
            digest.update(data)
        images, maps, labels, annotations = [], [], list[str](), list[Any]()
        kinds = set()
        for key, group in groups.items():
            mask = next((group[end] for end in MAPS if end in group), None)
            image = next(
                (m for end, m in group.items() if m is not mask and f".{end.rpartition('.')[2]}" in ENDINGS),
                None,
            )
            if image is None:
                continue
            kind, label, annotation = "unlabelled", "", None
            if mask is not None:
                kind = "segment"
                maps.append((0, mask.size, mask.offset, -1, mask.crc))
            else:
                kind, label, annotation = _label(file, key, group)
            if annotation is not None and not (annotation.get("height") and annotation.get("width")):
                file.seek(image.offset)
                height, width, turn = header(io.BytesIO(file.read(image.size)))
                annotation["height"], annotation["width"] = stored_size(turn, height, width)
            kinds.add(kind)
            labels.append(label)
            annotations.append([image.name, annotation] if kind == "detect" else None)
            images.append((0, image.size, image.offset, -1, image.crc))
    if len(kinds) > 1:
        raise ValueError(f"{path!r} holds images of several kinds: {some(sorted(kinds))}.")
    return {
        "rows": np.array(images, dtype=ROW),
        "targets": np.array(maps, dtype=ROW),
        "kind": next(iter(kinds), "unlabelled"),
        "labels": labels if kinds == {"classify"} else [],
        "annotations": annotations if kinds == {"detect"} else [],
        "sha256": digest.hexdigest(),
        "size": os.path.getsize(path),
    }


def _label(file: Any, key: str, group: dict[str, Member]) -> tuple[str, str, Any]:
    """Kind of an image, its raw class, its annotations."""

    def text(member: Member) -> str:
        file.seek(member.offset)
        return str(file.read(member.size).decode("utf-8", "replace")).strip()

    for end in LABELS:
        if end in group and (end != "txt" or group[end].size < BLOCK):
            return "classify", text(group[end]), None
    if "json" in group:
        try:
            table = json.loads(text(group["json"]))
        except ValueError:
            table = None
        if isinstance(table, dict):
            if isinstance(table.get("annotations"), list):
                return "detect", "", table
            for name in ("label", "class", "cls", "class_id"):
                if isinstance(table.get(name), int | str):
                    return "classify", str(table[name]), None
    folder = key.rpartition("/")[0].rpartition("/")[2]
    return ("classify", folder, None) if folder else ("unlabelled", "", None)


def _class_names(labels: Sequence[str], given: Sequence[str], kind: str, folder: str) -> list[str]:
    """The classes in index order.

    Raises:
        ValueError: if labels are not among the given classes.
    """
    if kind != "classify":
        return list(given)
    numeric = all(label.isdecimal() for label in set(labels))
    if numeric:
        count = max(map(int, labels)) + 1
        if given and count > len(given):
            raise ValueError(
                f"The shards in {folder!r} have a class {count - 1}; {len(given)} names are given."
            )
        return list(given) or [str(i) for i in range(count)]
    names = list(given) or sorted(set(labels))
    if unknown := sorted(set(labels) - set(names)):
        raise ValueError(f"The shards in {folder!r} have classes that are not given: {some(unknown)}.")
    return names


def _write_part(
    root: Path, part: str, shards: list[str], scans: dict[str, Scan], kind: str, names: list[str]
) -> tuple[Shard, ...]:
    """Write the index files of a split."""
    numbers = {name: i for i, name in enumerate(names)}
    with atomic(root / f"{part}.index") as file:
        for number, name in enumerate(shards):
            scan = scans[name]
            rows = scan["rows"].copy()
            rows["shard"] = number
            if kind == "classify":
                rows["label"] = [numbers[x] if x in numbers else int(x) for x in scan["labels"]]
            file.write(rows.tobytes())
    if kind == "segment":
        with atomic(root / f"{part}.targets") as file:
            for number, name in enumerate(shards):
                rows = scans[name]["targets"].copy()
                rows["shard"] = number
                file.write(rows.tobytes())
    return tuple(
        Shard(name, scans[name]["size"], scans[name]["sha256"], len(scans[name]["rows"])) for name in shards
    )


def _add_categories(parts: Iterable[list[Any]], names: list[str]) -> None:
    """Append classes that annotations name, or number from 1, to the given ones."""
    used = {
        a.get("category", a.get("category_id"))
        for part in parts
        for _, table in part
        for a in table["annotations"]
    }
    names += sorted(name for name in used if isinstance(name, str) and name not in names)
    numbers = [number for number in used if isinstance(number, int)]
    names += [str(i + 1) for i in range(len(names), max(numbers, default=0))]


def _coco(annotated: list[Any], names: Sequence[str]) -> dict[str, Any]:
    """Annotations by image -> COCO JSON; a file is SHARD/MEMBER."""
    numbers = {name: i + 1 for i, name in enumerate(names)}
    ids = [table.get("image_id") for _, table in annotated]
    own = all(isinstance(i, int) for i in ids) and len(set(ids)) == len(ids)
    images, rows = list[Any](), list[Any]()
    for place, (name, table) in enumerate(annotated, start=1):
        number = table["image_id"] if own else place
        images.append(
            {"id": number, "file_name": name, "height": table.get("height"), "width": table.get("width")}
        )
        for annotation in table["annotations"]:
            category = annotation.get("category", annotation.get("category_id"))
            known = numbers.get(category, category)
            rows.append({**annotation, "id": len(rows) + 1, "image_id": number, "category_id": known})
    categories = [{"id": i, "name": name} for name, i in numbers.items()]
    return {"info": {}, "images": images, "annotations": rows, "categories": categories}
