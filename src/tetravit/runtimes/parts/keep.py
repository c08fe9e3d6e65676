"""The kept programs of one model and image size, and the choices made with them."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tetravit.runtimes.base import Programs, Way
from tetravit.runtimes.parts import kept
from tetravit.runtimes.parts.fingerprint import NoFingerprint, fingerprint, machine
from tetravit.runtimes.parts.tune import Candidate, Choice

FORMAT = 2  # of entries, raised by each change of their meaning
CONFIRMED = 2  # measurements in a row that a backend other than the usual winner must win to be kept
PROGRAMS = 4  # compiled programs of an entry; each holds the weights
GRAPH = ".onnx"  # ending of the names of graphs


class Keeper:
    """The entry of a model and an image size in the cache folder.

    why_not: why nothing is kept; "" if something is, or if keeping is off. damaged: whether a kept file was damaged,
    so that the entry was removed.
    """

    def __init__(self, model: nn.Module, device: torch.device, sides: tuple[int, ...]) -> None:
        self.why_not, self.damaged, self._key = "", False, ""
        self._entry: kept.Entry | None = None
        if device.type != "cpu" or kept.limit() == 0:
            return
        try:
            parts = {"format": FORMAT, "model": fingerprint(model), "sides": list(sides), **machine()}
        except NoFingerprint as error:
            self.why_not = str(error)
            return
        self._key = kept.key_of(parts)
        self._entry = kept.read(self._key, verify=())
        self._facts = {
            "model": getattr(model, "name", "") or type(model).__name__,
            "image": "x".join(map(str, sides)),
        }

    def file(self, name: str) -> Path | None:
        """A kept file; None: there is none, or it was damaged."""
        if self._entry is None or self._entry.file(name) is None:
            return None
        if not kept.is_whole(self._entry, [name]):
            kept.remove(self._entry)
            self._entry, self.damaged = None, True
            return None
        return self._entry.file(name)

    def add(self, name: str, graph: bytes) -> Path | None:
        """Keep a graph; returns its file, or None if it could not be kept."""
        if not self._key:
            return None
        if self._entry is None:
            self._entry, self.why_not = kept.write(self._key, {name: graph}, self._facts)
        elif self._entry.file(name) is None:
            kept.add(self._entry, name, graph)
        return self._entry.file(name) if self._entry else None

    @property
    def can_keep(self) -> bool:
        """Whether there is room for a compiled program, which is about as large as its graph."""
        if self._entry is None:
            return False
        sizes = [int(row["bytes"]) for row in self._entry.facts.get("files", {}).values()]
        return sum(sizes) + max(sizes, default=0) <= kept.limit()

    def add_program(self, name: str, program: bytes) -> None:
        """Keep a compiled program; of more than `PROGRAMS` the oldest is removed."""
        if self._entry is None or self._entry.file(name) is not None:
            return
        held = [one for one in self._entry.facts["files"] if not one.endswith(GRAPH)]
        for oldest in held[: max(0, len(held) - PROGRAMS + 1)]:
            kept.discard(self._entry, oldest)
        kept.add(self._entry, name, program)

    def choice(self, case: str, usual: str) -> Choice | None:
        """The kept choice under these conditions; None: there is none, or it is not confirmed yet."""
        row: Any = self._rows().get(case)
        with suppress(KeyError, TypeError, ValueError, AttributeError):
            way = Way(int(row["threads"]), bool(row["split"]))
            candidate = Candidate(str(row["backend"]), way)
            if candidate.backend != usual and row["times"] < CONFIRMED:
                return None
            seconds = {str(k): float(v) for k, v in row["seconds"].items()}
            best, parts = row["best_s"], int(row["parts"])
            return Choice(candidate, parts, seconds, None if best is None else float(best), row["others"])
        return None

    def keep(self, case: str, choice: Choice) -> None:
        """Keep the choice made under these conditions."""
        if not self._key:
            return
        before = self._rows().get(case, {})
        way, same = choice.candidate.way, before.get("backend") == choice.candidate.backend
        row = {
            "backend": choice.candidate.backend,
            "threads": way.threads,
            "split": way.split,
            "parts": choice.parts,
            "seconds": dict(choice.seconds),
            "best_s": choice.best_s,
            "others": round(choice.others, 2),
            "times": (int(before.get("times", 0)) if same else 0) + 1,
        }
        choices = {"choices": {**self._rows(), case: row}}
        if self._entry is None:
            self._entry, self.why_not = kept.write(self._key, {}, {**self._facts, **choices})
        else:
            kept.update(self._entry, choices)

    def type_of(self, case: str) -> tuple[str, float | None] | None:
        """The type that "auto" chose under these conditions, and the difference from float32."""
        row: Any = (self._entry.facts.get("types", {}) if self._entry else {}).get(case)
        with suppress(KeyError, TypeError, ValueError):
            return str(row["dtype"]), None if row["difference"] is None else float(row["difference"])
        return None

    def keep_type(self, case: str, dtype: str, difference: float | None) -> None:
        """Keep the type that "auto" chose."""
        if self._entry:
            types = {**self._entry.facts.get("types", {}), case: {"dtype": dtype, "difference": difference}}
            kept.update(self._entry, {"types": types})

    def _rows(self) -> Mapping[str, Any]:
        rows = self._entry.facts.get("choices") if self._entry else None
        return rows if isinstance(rows, dict) else {}


class KeptPrograms(Programs):
    """The compiled programs in the entry of a `Keeper`."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper

    def read(self, name: str) -> bytes | None:
        file = self._keeper.file(name)
        with suppress(OSError):  # removed by another process
            return file.read_bytes() if file is not None else None
        return None

    def keep(self, name: str, program: bytes) -> None:
        self._keeper.add_program(name, program)
