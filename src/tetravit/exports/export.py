"""A model to another format, verified against the model.

Shapes: B batch, C channels, K classes, P detections, (Hi, Wi) image in pixels.
"""

import copy
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tetravit import exports
from tetravit.exports.base import Graph, Target
from tetravit.exports.compare import Compared, compare
from tetravit.models.portable import SMALLEST, Portable, check_model, flat
from tetravit.registry import pick
from tetravit.runtimes.base import CannotRun, capture, fold, quiet
from tetravit.weights.fileformat import package_version

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
ERRORS = {"float32": 2e-5, "float16": 0.02, "bfloat16": 0.1}  # of outputs, as a share of the largest
DENSE_SIDE = 320  # pixels: what models of dense tasks are written for where no size is given

Model = Portable


@dataclass(frozen=True)
class Exported:
    """What was written.

    files: the main one first. size: total bytes. difference: the largest between its outputs and the model's, as a
    share of the largest output. shapes: of the images on which they were compared. objects: that a detector found
    in them; 0: none, so no box was compared; None: no detector.
    """

    files: tuple[Path, ...]
    format: str
    dtype: str
    size: int
    difference: float
    shapes: tuple[tuple[int, ...], ...]
    objects: int | None


def export(
    model: Model,
    path: str | Path,
    format: str | None = None,
    *,
    size: int | tuple[int, int] | None = None,
    dtype: str = "float32",
    fold: bool = False,
    existing: Literal["refuse", "replace"] = "refuse",
    licence: str = "",
) -> Exported:
    """Write a model as a program for images of any batch and size, and verify that its outputs are the model's.

    Sides are 64 to 4096 pixels; for detectors 160 to 4096, in steps of 32. The file is loaded again and compared
    with the model on images of `size`, a larger and a smaller size, in two batch sizes. It appears whole or not
    at all, and only where the outputs agree: float32 within 2e-5 of the largest. A detector that finds nothing in
    these images has no boxes to compare: `objects` of the result is 0. Inputs are float32
    `images`, normalized, and for detectors `sizes` (B, 2) int64, the height and width of each image without its
    padding; detections come filled up to a fixed number per image, marked by `valid`. The file says what it
    holds: model, task, class names, how pictures are prepared.

    Args:
        model: a classifier, segmenter, detector, or backbone with four maps, on a CPU or GPU; it stays as it is.
        path: the file; its folder exists.
        format: of `TARGETS`; None: what the ending of `path` says.
        size: side or (height, width) in pixels that the file is fastest at; None: a classifier's own, from 64 up;
            320 for the others.
        dtype: float32, float16 or bfloat16, what it computes in.
        fold: fold batch norms into the convolutions before them.
        existing: "replace": overwrite an existing file.
        licence: of the weights, stored in the file.

    Raises:
        ValueError: for an unknown format or type, a place that cannot be written to, a package that is missing, a
            model that the format cannot hold, an optimised model, or outputs that differ.
    """
    check_model(model, "export")
    if hasattr(model, "optimized"):
        raise ValueError("An optimised model is not exported; export the model it was made of.")
    path = Path(path)
    name, target = place(path, format, existing)
    if dtype not in target.dtypes:
        raise ValueError(f"dtype takes one of {', '.join(target.dtypes)} for {name}; got {dtype!r}.")
    why = target.ready()
    if why:
        raise ValueError(f"The format {name!r} cannot be written: {why}.")
    plain = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    sides = _sides(plain, size)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder, quiet():
        draft = Path(folder) / path.name
        try:
            graph = _graph(plain, sides, dtype, folded=fold, licence=licence)
        except CannotRun as error:
            raise ValueError(f"The format {name!r} cannot hold this model: {error}.") from error
        with _held(name):
            target.write(graph, draft)
            run = target.load(draft)
        compared = compare(plain, _held(name)(run), sides)
        _check(compared, dtype, name)
        drafts = [draft.with_suffix(ending) for ending in (*target.beside, target.suffix)]
        total = sum(file.stat().st_size for file in drafts)
        place(path, format, existing)  # others may have written in the meantime
        for file in drafts:  # the main file last: where it is, all are
            os.replace(file, path.with_suffix(file.suffix))
    return Exported(
        _files(path, target), name, dtype, total, compared.difference, compared.shapes, compared.objects
    )


def place(
    path: Path, format: str | None = None, existing: Literal["refuse", "replace"] = "refuse"
) -> tuple[str, Target]:
    """The name of the format of a file to be written, and its target.

    Raises:
        ValueError: for an unknown format or ending, a folder that does not exist, files or folders that do.
    """
    endings = {target.suffix: name for name, target in exports.TARGETS.items()}
    if format is None and path.suffix not in endings:
        known = ", ".join(f"{ending} ({name})" for ending, name in sorted(endings.items()))
        raise ValueError(f"The ending of a file says its format: {known}; got {path.name!r}.")
    name = endings[path.suffix] if format is None else format
    target = pick(exports.TARGETS, name, "format")
    if path.suffix != target.suffix:
        raise ValueError(f"Files of the format {name!r} end in {target.suffix}; got {path.name!r}.")
    if not path.parent.is_dir():
        raise ValueError(f"There is no folder {str(path.parent)!r}.")
    there = [file for file in _files(path, target) if file.exists()]
    for file in there:
        if file.is_dir():
            raise ValueError(f"{file} is a folder; a file is to be written there.")
    if there and existing == "refuse":
        is_, it = ("is", "it") if len(there) == 1 else ("are", "them")
        raise ValueError(
            f"{' and '.join(str(file) for file in there)} {is_} there already; --force, in Python"
            f" existing='replace', writes over {it}."
        )
    return name, target


@contextmanager
def _held(format: str) -> Iterator[None]:
    """What a format's own program says against a model becomes one line; what the disk says stays."""
    try:
        yield
    except (OSError, MemoryError):
        raise
    except Exception as error:
        lines = [line for line in str(error).strip().splitlines() if not line.startswith("Exception from")]
        why = lines[0] if lines else type(error).__name__  # OpenVINO's texts begin with where
        raise ValueError(f"The format {format!r} cannot hold this model: {why.rstrip('.')}.") from error


def _files(path: Path, target: Target) -> tuple[Path, ...]:
    return tuple(path.with_suffix(ending) for ending in (target.suffix, *target.beside))


class _Served(nn.Module):
    """Float32 in and out, whatever is computed in; a flat tuple comes out."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.dtype = model, dtype

    def forward(self, images: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
        given = images.to(self.dtype)
        outputs = self.model(given) if sizes is None else self.model(given, sizes)
        return tuple(x.float() if x.is_floating_point() else x for x in flat(outputs))


def _graph(model: Model, sides: tuple[int, int], dtype: str, *, folded: bool, licence: str) -> Graph:
    part: nn.Module = copy.deepcopy(model)
    if folded:
        fold(part)
    served = _Served(part.to(DTYPES[dtype]), DTYPES[dtype]).eval()
    example = torch.zeros(2, model.backbone.in_chans, *sides)
    allowed = model.program_sides
    program = capture(
        served, example, *model.other_inputs(example), multiple=allowed.step, smallest=allowed.start
    )
    facts = _facts(model, sides, licence) | {"dtype": dtype, "folded": folded}
    return Graph(program, model.program_inputs, model.output_names, facts, dtype)


def _facts(model: Model, sides: tuple[int, int], licence: str) -> dict[str, Any]:
    """How the file is used, JSON-ready."""
    allowed = model.program_sides
    facts: dict[str, Any] = {"outputs": list(model.output_names), "made_for": list(sides)}
    facts |= {"sides": [allowed[0], allowed[-1]], "multiple": allowed.step}
    return {**facts, **model.facts(), "licence": licence, "written_by": f"tetravit {package_version()}"}


def _sides(model: Model, size: int | Sequence[int] | None) -> tuple[int, int]:
    """Height and width that the file is made for.

    Raises:
        ValueError: if it is neither a side nor two, or the graph does not take them.
    """
    if size is None:
        size = tuple(max(SMALLEST, side) for side in model.usual_sides(DENSE_SIDE))
    sides = size if isinstance(size, Sequence) else (size, size)
    if len(sides) != 2 or not all(isinstance(side, int) for side in sides):
        raise ValueError(f"size takes a side in pixels, or (height, width); got {size!r}.")
    (height, width), allowed = sides, model.program_sides
    if height not in allowed or width not in allowed:
        steps = f", in steps of {allowed.step}" if allowed.step > 1 else ""
        raise ValueError(
            f"An exported {type(model).__name__.lower()} takes sides of {allowed[0]} to {allowed[-1]} pixels"
            f"{steps}; got {height}x{width}."
        )
    return height, width


def _check(compared: Compared, dtype: str, format: str) -> None:
    """Raises: ValueError if the outputs differ by more than the type allows."""
    if not compared.difference <= ERRORS[dtype]:
        raise ValueError(
            f"The {format} file differs from the model: by {compared.difference:.1e} of the largest"
            f" output at {compared.worst}; allowed are {ERRORS[dtype]:g}. Nothing was written."
        )
