"""The plan of a bulk job: units of a folder or of shards, and where their results go. Imports no torch."""

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tetravit.files import read_json, replace_file, write_json

LOG = logging.getLogger("tetravit.data")
PLAN, FILES = "plan.json", "files.txt"
VERSION = 1
UNIT = 1000  # files per unit

Verb = Literal["embed", "predict"]


@dataclass(frozen=True)
class Unit:
    """Images that are processed together. part: the shard; "": files. first, count: range of images."""

    name: str
    part: str
    first: int
    count: int


@dataclass(frozen=True)
class Plan:
    """One bulk job.

    folder: for the results. data: the images. options: of the predictor. batch: images per call of the model.
    """

    verb: Verb
    model: str
    data: str
    folder: Path
    batch: int
    options: tuple[tuple[str, Any], ...]
    units: tuple[Unit, ...]
    accept_license: bool = False

    def file(self, unit: Unit) -> Path:
        """Result file of a unit; it exists once the unit is complete."""
        return self.folder / f"{unit.name}.parquet"

    def unfinished(self, only: str | None = None) -> list[Unit]:
        """Units without a result. only: "I/N", every N-th unit from the I-th, counted from 0.

        Raises:
            ValueError: if `only` is malformed.
        """
        units: Sequence[Unit] = self.units
        if only is not None:
            first, _, step = only.partition("/")
            if not (first.isdecimal() and step.isdecimal() and int(first) < int(step)):
                raise ValueError(f"--only is I/N, 0 <= I < N; got {only!r}.")
            units = units[int(first) :: int(step)]
        return [unit for unit in units if not self.file(unit).exists()]

    def names(self, unit: Unit) -> list[str]:
        """Files of a unit, relative to the data folder."""
        lines = (self.folder / FILES).read_text(encoding="utf-8", errors="surrogateescape").split("\n")
        return [json.loads(line) for line in lines[unit.first : unit.first + unit.count]]


def make_plan(
    verb: Verb,
    model: str,
    data: str,
    folder: Path,
    *,
    batch: int = 32,
    unit: int = UNIT,
    options: dict[str, Any] | None = None,
    accept_license: bool = False,
) -> Plan:
    """The plan of a job, written into the result folder; a job that was started before keeps its plan.

    Raises:
        ValueError: if there are no images, or the folder holds the results of another job.
    """
    from tetravit.data.config import absolute
    from tetravit.data.storage import is_local

    data = absolute(data)
    local = os.path.abspath(os.path.expanduser(model))
    model = local if os.path.exists(local) else model
    wanted = {
        "version": VERSION,
        "verb": verb,
        "model": model,
        "data": data,
        "unit": unit,
        "options": options or {},
    }
    if is_local(data) and not os.path.isdir(data):
        raise ValueError(f"There is no folder {data!r}.")
    kept = read_json(folder / PLAN)
    if kept and {name: kept.get(name) for name in wanted} != wanted:
        other = next(name for name in wanted if kept.get(name) != wanted[name])
        raise ValueError(
            f"{str(folder)!r} holds the results of another job: its {other} is {kept.get(other)!r}, not"
            f" {wanted[other]!r}. Take another folder."
        )
    if not kept:
        folder.mkdir(parents=True, exist_ok=True)
        units = _of_shards(data) or _of_files(data, folder, unit)
        kept = {**wanted, "units": [[u.name, u.part, u.first, u.count] for u in units]}
        write_json(folder / PLAN, kept)
    units = [Unit(*row) for row in kept["units"]]
    pairs = tuple(sorted((options or {}).items()))
    return Plan(verb, model, data, folder.absolute(), batch, pairs, tuple(units), accept_license)


def _of_shards(data: str) -> list[Unit]:
    """One unit per shard; none without shards."""
    from tetravit.data.shards.index import find_meta, read_meta
    from tetravit.data.storage import is_local

    meta = find_meta(data) if is_local(data) else read_meta(data)
    units = []
    for part, shards in meta.parts.items() if meta else ():
        first = 0
        for shard in shards:
            name = shard.name.removesuffix(".tar").strip("/").replace("/", "-")
            units.append(Unit(name, part, first, shard.count))
            first += shard.count
    return units


def _of_files(data: str, folder: Path, size: int) -> list[Unit]:
    from tetravit.data.files import UNREAD, images_below
    from tetravit.data.problems import Problems

    problems = Problems()
    names = images_below(data, problems)
    if not names:
        lines = "; ".join(problems.lines()) or "it is empty"
        raise ValueError(f"There are no images in {data!r}: {lines}.")
    for line in problems.lines():
        if UNREAD in line:
            LOG.warning("%s: %s.", data, line)
    replace_file(folder / FILES, "\n".join(map(json.dumps, names)).encode())
    return [
        Unit(f"{number:06d}", "", first, min(size, len(names) - first))
        for number, first in enumerate(range(0, len(names), size))
    ]
