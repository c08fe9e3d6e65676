"""The contract of an export target, and the graph that targets write.

Shapes: B batch, C channels, Hi Wi image.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor
from torch.export import ExportedProgram

Run = Callable[[Sequence[Tensor]], Sequence[Tensor]]
KEY = "tetravit"  # the metadata entry of a file with its facts


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
    """

    suffix: ClassVar[str]
    beside: ClassVar[tuple[str, ...]] = ()
    dtypes: ClassVar[tuple[str, ...]] = ("float32", "float16", "bfloat16")

    def ready(self) -> str:
        """The reason why it is not available here; "" where it is."""
        return ""

    def write(self, graph: Graph, path: Path) -> None:
        """Write the graph to `path`.

        Raises:
            CannotRun: if this format cannot hold it.
        """
        raise NotImplementedError

    def load(self, path: Path) -> Run:
        """Run a written file on this CPU: inputs -> outputs, in the order of their names."""
        raise NotImplementedError
