"""How the loader reads a folder: which data set and splits it has, and what is left out."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tetravit.data.audit.facts import Maps
from tetravit.data.audit.findings import Findings
from tetravit.data.build import build_dataset
from tetravit.data.config import DataConfig
from tetravit.data.datasets import Dataset
from tetravit.data.guess import part_named
from tetravit.data.label_maps import LabelMaps
from tetravit.data.lookup import visible_files
from tetravit.data.parts import PARTS, Part


@dataclass
class Layout:
    """The data set in a folder.

    name: in the menu of data sets. counts: images per split. class_names: the classes. maps: label maps by path below
    the root: their image and decoding.
    """

    name: str
    counts: dict[str, int] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    maps: dict[str, tuple[str, Maps]] = field(default_factory=dict)


def part_of(path: str) -> Part | None:
    """The split of a path below the root, from the names of its folders; None: unknown."""
    parts = (part_named(name) for name in path.split("/")[:-1])
    return next((part for part in parts if part is not None), None)


def read_layout(root: Path, name: str, findings: Findings) -> Layout:
    """The data set as loaded; images that are left out are added to the findings."""
    layout = Layout(name)
    config = DataConfig.model_validate({"name": name, "root": str(root), "batch_size": 1})
    has = parts_in(root)
    for part in PARTS:
        if part not in has and part != "train":
            continue
        try:
            dataset = build_dataset(config, part)
        except ValueError as error:
            if part in has or not layout.counts:
                findings.add("refused", part, str(error).rstrip("."))
            continue
        layout.counts[part] = len(dataset)
        layout.class_names = tuple(map(str, dataset.class_names))
        _read_part(dataset, part, root, findings)
        if isinstance(dataset, LabelMaps) and dataset.pairs:
            reading = Maps(dataset.convert, dataset.colours)
            for image, labels in dataset.pairs:
                layout.maps[_below_root(labels, root)] = (_below_root(image, root), reading)
    return layout


def parts_in(root: Path) -> set[Part]:
    """The splits in a folder, from the names of its folders and files."""
    has = {part_of(f"{path.relative_to(root).as_posix()}/x") for path in _folders(root)}
    has |= {
        part
        for part in PARTS
        for file in visible_files(root / "annotations", ".json")
        if part in file.stem.lower()
    }
    has |= {part_named(file.name.partition(".")[0].partition("-")[0]) for file in root.glob("*.*")}
    return {part for part in has if part is not None}


def _read_part(dataset: Dataset, part: Part, root: Path, findings: Findings) -> None:
    """Add what the loader leaves out of a split, and missing classes."""
    problems = getattr(dataset, "problems", None)
    for cause, count in getattr(problems, "counts", {}).items():
        if not cause.startswith("files left out"):  # already findings of the files
            findings.add("labels", f"{part}: {problems.first[cause]}", cause, count)  # type: ignore[union-attr]
    info = dataset.info
    if info.counts is not None and not isinstance(dataset, LabelMaps):
        for name, count in zip(info.class_names, info.counts.tolist(), strict=True):
            if not count:
                findings.add("empty_class", f"{part}: {name}")


def _folders(root: Path) -> Iterator[Path]:
    """Folders up to two levels below the root."""
    for entry in os.scandir(root):
        if entry.is_dir():
            yield Path(entry.path)
            yield from (Path(inner.path) for inner in os.scandir(entry.path) if inner.is_dir())


def _below_root(file: Path, root: Path) -> str:
    return Path(os.path.relpath(file, root)).as_posix()
