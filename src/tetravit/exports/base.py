"""The contract of an export target, and the graph that targets write.

Shapes: B batch, C channels, Hi Wi image.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.export import ExportedProgram

from tetravit.models.portable import Portable

Run = Callable[[Sequence[Tensor]], Sequence[Tensor]]
Announce = Callable[[str], object]  # takes one line on what an export is about to do
KEY = "tetravit"  # the metadata entry of a file with its facts
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
ERRORS = {
    "float32": 2e-5,
    "float16": 0.02,
    "bfloat16": 0.1,
    "int8": 1.0,
}  # of outputs, as a share of the largest


def silent(line: str) -> None:
    """Announce nothing."""


@dataclass(frozen=True)
class Graph:
    """A model as a program for every batch and size.

    inputs, outputs: their names, in order. facts: metadata needed to use it, JSON-ready. dtype: a name of
    `exports.DTYPES`, what it computes in; inputs and outputs are float32.
    """

    program: ExportedProgram
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    facts: Mapping[str, Any]
    dtype: str


class Target:
    """A format of files that other programs run.

    suffix: the ending of its files. beside: endings of further files of the same name. dtypes: what it can hold.
    by_ending: whether the ending alone selects it; else `format` names it. packages: the distributions that run
    its files, whose versions a certificate holds. runs_code: why loading a file of another is as unsafe as running
    a program of theirs; "": it is data.
    """

    suffix: ClassVar[str]
    beside: ClassVar[tuple[str, ...]] = ()
    dtypes: ClassVar[tuple[str, ...]] = ("float32", "float16", "bfloat16")
    by_ending: ClassVar[bool] = True
    packages: ClassVar[tuple[str, ...]] = ()
    runs_code: ClassVar[str] = ""

    def ready(self) -> str:
        """The reason why its files do not run here; "" where they do."""
        return ""

    def unwritable(self) -> str:
        """The reason why files cannot be written here; "" where they can: more than `ready` may be needed."""
        return self.ready()

    def write(self, graph: Graph, path: Path) -> None:
        """Write the graph to `path`.

        Raises:
            CannotRun: if this format cannot hold it.
        """
        raise NotImplementedError

    def load(self, path: Path) -> Run:
        """Run a written file on this CPU: inputs -> outputs, in the order of their names."""
        raise NotImplementedError

    def facts(self, path: Path) -> dict[str, Any]:
        """The facts of the graph that a file was written from; nothing in the file is run.

        Raises:
            ValueError: if the file is not of this format, or holds no facts.
        """
        raise ValueError(f"{path} does not say what it holds.")

    def unfit(self, path: Path) -> str:
        """The reason why a file does not run on this machine, though the format does; "" where it does."""
        return ""


@contextmanager
def held(start: str) -> Iterator[None]:
    """Errors of a format's own program become one line after `start`; those of the system stay."""
    try:
        yield
    except (OSError, MemoryError):
        raise
    except Exception as error:
        lines = [line for line in str(error).strip().splitlines() if not line.startswith("Exception from")]
        why = lines[0] if lines else type(error).__name__  # OpenVINO's texts begin with where
        raise ValueError(f"{start}: {why.rstrip('.')}.") from error


class Folder:
    """A folder around a file of another format, for a purpose of its own; `format` names it.

    main, inside: the file in it, and that file's format. first, names: the file to open, and all that can be in it.
    settings: what `add` takes, by name.
    """

    main: ClassVar[str]
    inside: ClassVar[str]
    first: ClassVar[str]
    names: ClassVar[tuple[str, ...]]
    dtypes: ClassVar[tuple[str, ...]]
    settings: ClassVar[tuple[str, ...]] = ()

    def check(self, model: Portable) -> None:
        """Raises: CannotRun if such a folder is of no use for a model."""

    def add(self, folder: Path, model: Portable, settings: Mapping[str, Any]) -> None:
        """Write what lies beside the file.

        Args:
            folder: with the file in it, which has been compared with the model.
            model: what was exported, as it was given.
            settings: of this target alone; those that are not given are absent.

        Raises:
            CannotRun: if the folder cannot hold the model.
            ValueError: for a setting that it does not take.
        """
        raise NotImplementedError
