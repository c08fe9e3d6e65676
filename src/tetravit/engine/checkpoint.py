"""Crash-safe checkpoints: one folder per kept step, complete or absent after a kill at any time.

    RUN/checkpoints/step_002000/
        model.safetensors  ema.safetensors  optimizer.safetensors  state.json
        MANIFEST.json      step, run, and the size and sha256 of every other file; written last

A folder is written under a temporary name, every file is flushed to disk, then the folder is renamed. Older
checkpoints are removed only after that. Nothing is pickled.
"""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
from torch import Tensor

from tetravit.files import sync_folder, write_file
from tetravit.world import World

FORMAT = 1
MANIFEST = "MANIFEST.json"
FULL = (errno.ENOSPC, errno.EDQUOT)  # disk or quota full: may be temporary


class BadCheckpoint(ValueError):
    """A checkpoint folder that differs from its manifest; the text names the file."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete, verified checkpoint."""

    path: Path
    step: int
    state: dict[str, Any]

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of one file (`model`, `ema`, `optimizer`), on the CPU."""
        return safetensors.torch.load_file(self.path / f"{name}.safetensors")


@dataclass(frozen=True)
class Sent(Checkpoint):
    """A checkpoint that rank 0 reads for all ranks, for disks that are not shared."""

    world: World

    def tensors(self, name: str) -> dict[str, Tensor]:
        """As `Checkpoint.tensors`; called on all ranks together."""
        tensors: dict[str, Tensor] = self.world.broadcast(
            super().tensors(name) if self.world.is_main else None
        )
        return tensors


class Copied(dict[str, Tensor]):
    """Copies of tensors on the CPU, without shared memory."""

    def __init__(self, group: Mapping[str, Tensor]) -> None:
        super().__init__(
            (key, value.detach().to("cpu", copy=True).contiguous()) for key, value in group.items()
        )


class Checkpoints:
    """The checkpoints of one run. failures: causes of consecutive failed saves, other than a full disk.

    keep: number of newest checkpoints to keep, at least 2, because the last may be incomplete.
    say: receives warnings, as one line of text.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        run_id: str,
        keep: int = 3,
        on_full: Literal["warn", "stop"] = "warn",
        say: Callable[[str], None] = print,
    ) -> None:
        if keep < 2:
            raise ValueError(f"keep is 2 or more, as the newest checkpoint may be incomplete; got {keep}.")
        self.folder = run_dir / "checkpoints"
        self.run_id, self.keep, self.on_full, self.say = run_id, keep, on_full, say
        self.failures: list[str] = []

    def prepare(self) -> None:
        """Create the folder, and remove the remains of interrupted saves and removals."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for rest in self.folder.glob(".*"):
            shutil.rmtree(rest, ignore_errors=True)

    def steps(self) -> list[int]:
        """The steps with a checkpoint folder, oldest first."""
        names = [re.fullmatch(r"step_(\d+)", p.name) for p in self.folder.glob("step_*")]
        return sorted(int(name[1]) for name in names if name)

    def save(
        self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]
    ) -> Path | None:
        """Write the checkpoint of `step` (steps done); None if the disk is full and the run continues.

        Raises:
            OSError: if it could not be written and `on_full` is `stop`. Older checkpoints are intact.
        """
        final = self.folder / f"step_{step:06d}"
        temporary = self.folder / f".writing_{final.name}"
        try:
            self._write(temporary, step, tensors, state)
            self._publish(temporary, final)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            reason = os.strerror(error.errno) if error.errno else str(error)
            if error.errno not in FULL:
                self.failures.append(reason)
            if self.on_full == "stop":
                raise
            kept = f"{_name(self.steps()[-1])} is kept" if self.steps() else "there is no older one"
            self.say(f"Could not save {final.name}: {reason}; {kept}, the run continues.")
            return None
        self.failures.clear()
        self._prune()
        return final

    def latest(self, *, on_corrupt: Literal["previous", "stop"] = "previous") -> Checkpoint | None:
        """The newest complete and unchanged checkpoint; None if there is none.

        Raises:
            BadCheckpoint: if all are damaged, or if the newest is and `on_corrupt` is `stop`.
        """
        faults: list[str] = []
        steps = self.steps()
        for step in reversed(steps):
            try:
                checkpoint = read(self.folder / _name(step), run_id=self.run_id)
            except BadCheckpoint as error:
                if on_corrupt == "stop":
                    raise
                faults.append(str(error))
                continue
            if faults:
                lost = steps[-1] - step
                self.say(f"{' '.join(faults)} Going on from {_name(step)}, {lost} steps earlier.")
            return checkpoint
        if faults:
            raise BadCheckpoint(f"No checkpoint in {self.folder} is whole: {' '.join(faults)}")
        return None

    def _write(
        self, folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]
    ) -> None:
        if folder.exists():
            shutil.rmtree(folder)
        os.mkdir(folder)
        files = {}
        for name, group in tensors.items():
            plain = group if isinstance(group, Copied) else Copied(group)
            files[f"{name}.safetensors"] = write_file(
                folder / f"{name}.safetensors", safetensors.torch.save(plain)
            )
        files["state.json"] = write_file(folder / "state.json", _json({"step": step, **state}))
        body = {"format": FORMAT, "run": self.run_id, "step": step, "files": files}
        write_file(folder / MANIFEST, _signed(body))
        sync_folder(folder)

    def _publish(self, temporary: Path, final: Path) -> None:
        """Rename the finished folder to its final name, replacing an existing (damaged) one."""
        if final.exists():
            os.rename(final, self.folder / f".old_{final.name}")
        os.rename(temporary, final)
        sync_folder(self.folder)
        shutil.rmtree(self.folder / f".old_{final.name}", ignore_errors=True)

    def _prune(self) -> None:
        """Remove all but the newest `keep`; renamed first, so that a partly removed folder never counts as
        complete."""
        for step in self.steps()[: -self.keep]:
            trash = self.folder / f".old_{_name(step)}"
            try:
                os.rename(self.folder / _name(step), trash)
                shutil.rmtree(trash)
            except OSError as error:
                self.say(f"Could not remove {_name(step)}: {error.strerror}; it stays.")


def read(folder: Path, *, run_id: str | None = None) -> Checkpoint:
    """A checkpoint, with every byte verified against its manifest.

    Raises:
        BadCheckpoint: names the file that is missing, truncated, changed, or of another checkpoint.
    """
    where = folder.name
    try:
        raw = (folder / MANIFEST).read_bytes()
    except FileNotFoundError:
        raise BadCheckpoint(f"{where} is incomplete: it has no {MANIFEST}.") from None
    except OSError as error:
        raise BadCheckpoint(f"{where}/{MANIFEST} cannot be read: {error.strerror}.") from None
    manifest = _verified(raw, where)
    if manifest["format"] != FORMAT:
        raise BadCheckpoint(f"{where} has format {manifest['format']}; this version reads format {FORMAT}.")
    if _name(manifest["step"]) != where:
        raise BadCheckpoint(f"{where} holds the files of {_name(manifest['step'])}.")
    if run_id is not None and manifest["run"] != run_id:
        raise BadCheckpoint(f"{where} belongs to another run ({manifest['run']}).")
    for name, entry in manifest["files"].items():
        try:
            size, digest = _digest(folder / name)
        except FileNotFoundError:
            raise BadCheckpoint(f"{where} is incomplete: {name} is missing.") from None
        except OSError as error:
            raise BadCheckpoint(f"{where}/{name} cannot be read: {error.strerror}.") from None
        if size != entry["bytes"]:
            raise BadCheckpoint(f"{where}/{name} has {size} bytes instead of {entry['bytes']}.")
        if digest != entry["sha256"]:
            raise BadCheckpoint(f"{where}/{name} has changed since it was written (sha256 differs).")
    return Checkpoint(folder, manifest["step"], json.loads((folder / "state.json").read_bytes()))


def size_mib(*groups: Mapping[str, Tensor]) -> float:
    """Size of tensors on disk, in bytes."""
    return sum(t.numel() * t.element_size() for group in groups for t in group.values()) / 2**20


def _name(step: int) -> str:
    return f"step_{step:06d}"


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1).encode()


def _signed(body: dict[str, Any]) -> bytes:
    return _json({**body, "sha256": hashlib.sha256(_json(body)).hexdigest()})


def _verified(raw: bytes, where: str) -> dict[str, Any]:
    """The manifest, if its bytes are unchanged."""
    try:
        manifest: dict[str, Any] = json.loads(raw)
        manifest.pop("sha256")
        intact = _signed(manifest) == raw
    except (ValueError, KeyError, AttributeError, TypeError):
        intact = False
    if not intact:
        raise BadCheckpoint(f"{where}/{MANIFEST} has changed since it was written.")
    return manifest


def _digest(path: Path) -> tuple[int, str]:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        return size, hashlib.file_digest(file, "sha256").hexdigest()
