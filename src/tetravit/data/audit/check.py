"""Check of a data set: files in parallel, then comparisons between files. The data is only read.

One record per file is appended to `records.jsonl` in the report folder: an interrupted check continues where it
stopped, and files that changed since are read again.
"""

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tetravit.data.audit import duplicates
from tetravit.data.audit.facts import Maps, Record, facts, shard_facts
from tetravit.data.audit.findings import Finding, Findings
from tetravit.data.audit.layout import Layout, part_of, read_layout
from tetravit.data.files import JUNK_FILES, check_folder, check_target, ending, is_image, is_junk_folder
from tetravit.data.guess import guess
from tetravit.data.label_maps import IGNORE
from tetravit.data.processes import in_parallel, process_pool
from tetravit.data.shards.index import find_meta
from tetravit.files import write_json

RECORDS = "records.jsonl"
CHUNK = 32  # files per job
UNIT = 256  # images of shards per job
ANNOTATIONS = frozenset(
    (
        ".txt",
        ".json",
        ".xml",
        ".csv",
        ".tsv",
        ".yaml",
        ".yml",
        ".md",
        ".mat",
        ".npz",
        ".tar",
        ".index",
        ".targets",
    )
)  # extensions of annotation files

Job = tuple[str, str | None, Maps | None]  # path; for a label map also its image, and how to decode it


@dataclass(frozen=True)
class Audit:
    """Result of a check. files: number of images and label maps; reused: those taken from an earlier check."""

    root: str
    layout: Layout
    findings: list[Finding]
    files: int
    reused: int

    @property
    def errors(self) -> int:
        """Number of findings that lose data or distort a score."""
        return sum(finding.level == "error" for finding in self.findings)

    def row(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "root": self.root,
            "name": self.layout.name,
            "images": self.layout.counts,
            "classes": len(self.layout.class_names),
            "files": self.files,
            "errors": self.errors,
            "findings": [finding.row() for finding in self.findings],
        }


def check_data(
    root: str | os.PathLike[str],
    to: str | os.PathLike[str],
    *,
    name: str | None = None,
    workers: int = 0,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Audit:
    """Check every file of a data set, and write `check.json` and `check.html`.

    Args:
        root: the folder of the data set.
        to: the folder of the report, outside the root; created if missing.
        name: the data set in the menu; None: detected from the names in the folder.
        workers: processes; 0: one per core.
        progress: called with the number of finished files and the total.

    Raises:
        ValueError: if the folder does not exist, or contains the report folder.
    """
    from tetravit.data.audit.page import write_page

    base, out = Path(root).absolute(), Path(to).absolute()
    check_folder(root)
    check_target(to)
    if out.resolve().is_relative_to(base.resolve()):
        raise ValueError(f"A check writes nothing into the data; {str(to)!r} lies in {str(root)!r}.")
    out.mkdir(parents=True, exist_ok=True)
    findings = Findings()
    layout = read_layout(base, name or guess(base), findings)
    jobs: list[Job] = []
    for path in _files(str(base), findings):
        image, reading = layout.maps.get(path, (None, None))
        jobs.append((path, image, reading))
    records, reused = _read_all(str(base), jobs, out / RECORDS, workers or os.cpu_count() or 1, progress)
    if layout.name.startswith("shards"):
        parts = [
            (str(base), part, first, min(UNIT, count - first))
            for part, count in shard_counts(base).items()
            for first in range(0, count, UNIT)
        ]
        records_of_parts = in_parallel(shard_facts, parts, workers)
        records += [record for some in records_of_parts for record in some]
    _add_records(records, layout, findings)
    audit = Audit(str(base), layout, findings.all(), len(records), reused)
    write_json(out / "check.json", audit.row())
    write_page(audit, out / "check.html")
    return audit


def shard_counts(root: Path) -> dict[str, int]:
    """Images of each split of shards; none without an index, which the loader reports."""
    meta = find_meta(str(root))
    return {} if meta is None else {part: meta.count(part) for part in meta.parts}


def _files(root: str, findings: Findings) -> Iterator[str]:
    """Image files below a root, sorted; folders with an image extension and unknown files become findings."""
    stack = [""]
    while stack:
        prefix = stack.pop()
        entries = sorted(os.scandir(os.path.join(root, prefix)), key=lambda entry: entry.name)
        folders = []
        for entry in entries:
            path = f"{prefix}{entry.name}"
            if entry.is_dir():
                if is_junk_folder(entry.name) or _leads_up(root, path):
                    continue
                if is_image(entry.name):
                    findings.add("folder", path)
                folders.append(f"{path}/")
            elif is_image(entry.name):
                yield path
            elif not _belongs(entry.name):
                findings.add("foreign", path, ending(entry.name) or "no ending")
        stack += reversed(folders)


def _belongs(name: str) -> bool:
    """Whether a non-image file is expected in a data set: annotations, hidden files, files of the system."""
    return name.startswith(".") or name.lower() in JUNK_FILES or ending(name) in ANNOTATIONS


def _leads_up(root: str, path: str) -> bool:
    """Whether a folder is a link to one of its parent folders."""
    here = os.path.realpath(os.path.join(root, path))
    above = os.path.realpath(os.path.dirname(os.path.join(root, path)))
    return os.path.islink(os.path.join(root, path)) and (above + os.sep).startswith(
        here.rstrip(os.sep) + os.sep
    )


def _read_all(
    root: str, jobs: list[Job], file: Path, workers: int, progress: Callable[[int, int], object]
) -> tuple[list[Record], int]:
    """The records of all files in order, and the number reused from an earlier check."""
    known = _known(file)
    records: dict[str, Record] = {}
    for path, image, _ in jobs:
        record = known.get(path)
        if record is not None and ("labels" in record) == (image is not None) and _is_of(record, root):
            records[path] = record
    reused = len(records)
    todo = [job for job in jobs if job[0] not in records]
    progress(reused, len(jobs))
    with file.open("a", encoding="utf-8", errors="surrogateescape") as stream:
        stream.write("\n" if stream.tell() else "")  # the last line may be incomplete
        for some in _parallel(root, todo, workers):
            for record in some:
                records[record["path"]] = record
                stream.write(json.dumps(record, ensure_ascii=True) + "\n")
            stream.flush()
            progress(len(records), len(jobs))
    return [records[path] for path, _, _ in jobs if path in records], reused


def _known(file: Path) -> dict[str, Record]:
    """Records of earlier checks, the last one per file; an incomplete line is skipped."""
    known: dict[str, Record] = {}
    if file.exists():
        with file.open(encoding="utf-8", errors="surrogateescape") as stream:
            for line in stream:
                with suppress(ValueError, KeyError, TypeError):
                    record = json.loads(line)
                    known[record["path"]] = record
    return known


def _is_of(record: Record, root: str) -> bool:
    try:
        status = os.stat(os.path.join(root, record["path"]))
    except OSError:
        return False
    return (status.st_size, status.st_mtime_ns) == (record["size"], record["time"])


def _parallel(root: str, jobs: list[Job], workers: int) -> Iterator[list[Record]]:
    """Records of the jobs, unordered. If a file crashes its process, the chunk is repeated file by file."""
    chunks = [jobs[i : i + CHUNK] for i in range(0, len(jobs), CHUNK)]
    suspects: list[list[Job]] = []
    while chunks:
        pool = process_pool(min(workers, len(chunks)))
        waiting: dict[Future[list[Record]], list[Job]] = {}
        try:
            while chunks or waiting:
                while chunks and len(waiting) < 2 * workers:
                    chunk = chunks.pop()
                    waiting[pool.submit(_chunk, root, chunk)] = chunk
                done, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
                    del waiting[future]
        except BrokenProcessPool:
            suspects += waiting.values()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    for chunk in suspects:
        for job in chunk:
            yield [_alone(root, job)]


def _alone(root: str, job: Job) -> Record:
    """The record of one file, read in a separate process."""
    pool = process_pool(1)
    try:
        return pool.submit(_chunk, root, [job]).result()[0]
    except BrokenProcessPool:
        status = os.stat(os.path.join(root, job[0]))
        findings = [["crash", "the process that decoded it ended"]]
        return {"path": job[0], "size": status.st_size, "time": status.st_mtime_ns, "findings": findings}
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _chunk(root: str, jobs: list[Job]) -> list[Record]:
    records = []
    for path, image, maps in jobs:
        try:
            records.append(facts(root, path, maps, image))
        except OSError as error:
            cause = (error.strerror or str(error)).lower()
            records.append({"path": path, "size": -1, "time": -1, "findings": [["unreadable", cause]]})
    return records


def _add_records(records: list[Record], layout: Layout, findings: Findings) -> None:
    """Add the findings of files, of their labels, and of duplicates."""
    images = []
    for record in records:
        for name, detail in record["findings"]:
            findings.add(name, record["path"], detail)
        if "labels" in record:
            _add_labels(record, layout, findings)
        elif "hash" in record and record["path"] not in layout.maps:
            images.append(record)
    _add_duplicates(images, findings)


def _add_labels(record: Record, layout: Layout, findings: Findings) -> None:
    total = sum(record["labels"].values())
    strange = {
        int(label): count
        for label, count in record["labels"].items()
        if int(label) >= len(layout.class_names) and int(label) != IGNORE
    }
    if strange:
        numbers = ", ".join(map(str, sorted(strange)[:5]))
        share = 100 * sum(strange.values()) / total
        findings.add("values", record["path"], f"{numbers}: {share:.1f} % of its pixels")


def _add_duplicates(images: list[Record], findings: Findings) -> None:
    parts = [part_of(record["path"]) for record in images]
    paths = [record["path"] for record in images]

    def add(kind: str, a: int, b: int) -> None:
        if parts[a] == parts[b]:
            findings.add(f"{kind}duplicate", paths[b], f"as {paths[a]}")
        elif "train" in (parts[a], parts[b]):
            a, b = (a, b) if parts[a] == "train" else (b, a)
            findings.add(f"{kind}leak", paths[b], f"as {paths[a]}")

    same: dict[str, str] = {}
    for group in duplicates.exact([record["hash"] for record in images]):
        firsts: dict[Any, int] = {}
        for i in group:
            same[paths[i]] = images[i]["hash"]
            if parts[i] in firsts:
                add("", firsts[parts[i]], i)
            firsts.setdefault(parts[i], i)
        trained = firsts.get("train")
        for i in group:
            if trained is not None and parts[i] != "train":
                add("", trained, i)
    shown = [i for i, record in enumerate(images) if record.get("look")]
    if len(shown) < 2:
        return
    looks = np.array([int(images[i]["look"], 16) for i in shown], dtype=np.uint64)
    tints = np.frombuffer(bytes.fromhex("".join(images[i]["tint"] for i in shown)), np.uint8).reshape(-1, 48)
    for a, b in duplicates.near(looks, tints):
        a, b = shown[a], shown[b]
        if images[a]["hash"] != images[b]["hash"]:
            add("near_", a, b)
