"""A model to another format, with proof that it answers the same; one target per file.

Shapes: B batch, C channels, K classes, P detections, (Hi, Wi) image in pixels.
"""

import copy
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tetravit.exports.base import Graph, Target
from tetravit.exports.compare import Compared, compare
from tetravit.models import Classifier, Detector, PyramidBackbone, Segmenter
from tetravit.registry import discover, pick
from tetravit.runtimes.base import LARGEST, SMALLEST, CannotRun, capture, fold
from tetravit.weights.fileformat import package_version

TARGETS: Mapping[str, Target] = discover(__name__, "TARGETS")

__all__ = ["DTYPES", "TARGETS", "Exported", "Model", "export", "place"]

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
ERRORS = {"float32": 2e-5, "float16": 0.02, "bfloat16": 0.1}  # of outputs, as a share of the largest
DENSE_SIDE = 320  # pixels: what models of dense tasks are written for where no size is given
DETECTOR_MULTIPLE, DETECTOR_SMALLEST = 32, 160  # pixels: the coarsest level then has more than one cell

Model = Classifier | Detector | PyramidBackbone | Segmenter


@dataclass(frozen=True)
class Exported:
    """What was written.

    files: the main one first. size: total bytes. difference: the largest between its answers and the model's, as a
    share of the largest answer. shapes: of the images on which they were compared. objects: that a detector found
    in them; None: no detector.
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
    fold: Literal["off", "on"] = "off",
    existing: Literal["refuse", "replace"] = "refuse",
    licence: str = "",
) -> Exported:
    """Write a model as a program for images of any batch, height and width, and prove that it answers the same.

    The file is loaded again and compared with the model on images of two sizes and two batch sizes. It appears
    whole or not at all, and only where the answers agree: float32 within 2e-5 of the largest. Inputs are float32
    `images`, normalized, and for detectors `sizes` (B, 2) int64, the height and width of each image without its
    padding; detections come filled up to a fixed number per image, with `valid` to tell. The file says what it
    holds: model, task, class names, how pictures are prepared.

    Args:
        model: a classifier, segmenter, detector, or backbone with four maps, on a CPU or GPU; it stays as it is.
        path: the file; its folder exists.
        format: of `TARGETS`; None: what the ending of `path` says.
        size: side or (height, width) in pixels that the file is fastest at; None: a classifier's own, from 64 up;
            320 for the others.
        dtype: float32, float16 or bfloat16, what it computes in.
        fold: "on": batch norms behind convolutions become part of them.
        existing: "replace": write over a file that is there.
        licence: of the weights, to be told in the file.

    Raises:
        ValueError: for an unknown format or type, a place that cannot be written to, a package that is missing, a
            model that the format cannot hold, or answers that differ.
    """
    path = Path(path)
    name, target = place(path, format, existing)
    if dtype not in target.dtypes:
        raise ValueError(f"dtype takes one of {', '.join(target.dtypes)} for {name}; got {dtype!r}.")
    why = target.ready()
    if why:
        raise ValueError(f"The format {name!r} cannot be written: {why}.")
    plain = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    sides = _sides(plain, size)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        draft = Path(folder) / path.name
        try:
            target.write(_graph(plain, sides, dtype, fold, licence), draft)
        except CannotRun as error:
            raise ValueError(f"The format {name!r} cannot hold this model: {error}.") from error
        compared = compare(plain, target.load(draft), sides, _multiple(plain))
        _check(compared, dtype, name)
        drafts = [draft.with_suffix(ending) for ending in (*target.beside, target.suffix)]
        total = sum(file.stat().st_size for file in drafts)
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
        ValueError: for an unknown format or ending, a folder that does not exist, a file that does.
    """
    endings = {target.suffix: name for name, target in TARGETS.items()}
    if format is None and path.suffix not in endings:
        known = ", ".join(f"{ending} ({name})" for ending, name in sorted(endings.items()))
        raise ValueError(f"The ending of a file says its format: {known}; got {path.name!r}.")
    name = endings[path.suffix] if format is None else format
    target = pick(TARGETS, name, "format")
    if path.suffix != target.suffix:
        raise ValueError(f"Files of the format {name!r} end in {target.suffix}; got {path.name!r}.")
    if not path.parent.is_dir():
        raise ValueError(f"There is no folder {str(path.parent)!r}.")
    there = [file for file in _files(path, target) if file.exists()]
    if there and existing == "refuse":
        raise ValueError(
            f"{there[0]} is there already; --force, in Python existing='replace', writes over it."
        )
    return name, target


def _files(path: Path, target: Target) -> tuple[Path, ...]:
    return tuple(path.with_suffix(ending) for ending in (target.suffix, *target.beside))


class _Served(nn.Module):
    """Float32 in and out, whatever is computed in; a flat tuple comes out."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.dtype = model, dtype

    def forward(self, images: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
        given = images.to(self.dtype)
        found: Any = self.model(given) if sizes is None else self.model(given, sizes)
        parts = [found] if isinstance(found, Tensor) else found.values() if isinstance(found, dict) else found
        return tuple(x.float() if x.is_floating_point() else x for x in parts)


def _graph(
    model: Model, sides: tuple[int, int], dtype: str, folding: Literal["off", "on"], licence: str
) -> Graph:
    part: nn.Module = copy.deepcopy(model)
    if folding == "on":
        fold(part)
    served = _Served(part.to(DTYPES[dtype]), DTYPES[dtype]).eval()
    example = torch.zeros(2, model.backbone.in_chans, *sides)
    multiple = _multiple(model)
    if isinstance(model, Detector):
        sizes = torch.tensor([sides, sides])
        program = capture(served, example, sizes, multiple=multiple, smallest=DETECTOR_SMALLEST)
    else:
        program = capture(served, example)
    facts = _facts(model, sides, licence) | {"dtype": dtype, "folded": folding == "on"}
    inputs = ("images", "sizes") if isinstance(model, Detector) else ("images",)
    return Graph(program, inputs, _outputs(model), facts, dtype)


def _outputs(model: Model) -> tuple[str, ...]:
    if isinstance(model, Detector):
        return ("boxes", "scores", "labels", "valid", *(("masks",) if model.head.has_masks else ()))
    if isinstance(model, PyramidBackbone):
        return tuple(f"map_{stride}" for stride in model.strides)
    return ("logits",) if model.num_classes else ("embedding",)


def _facts(model: Model, sides: tuple[int, int], licence: str) -> dict[str, Any]:
    """What one must know to use the file, JSON-ready."""
    smallest = DETECTOR_SMALLEST if isinstance(model, Detector) else SMALLEST
    facts: dict[str, Any] = {"outputs": list(_outputs(model)), "made_for": list(sides)}
    facts |= {"sides": [smallest, LARGEST], "multiple": _multiple(model)}
    if not isinstance(model, PyramidBackbone):
        facts |= {"model": model.name, "task": model.task, "num_classes": model.num_classes}
        facts |= {"class_names": list(model.class_names), "preprocess": asdict(model.input)}
    return {**facts, "licence": licence, "written_by": f"tetravit {package_version()}"}


def _multiple(model: nn.Module) -> int:
    return DETECTOR_MULTIPLE if isinstance(model, Detector) else 1


def _sides(model: Model, size: int | Sequence[int] | None) -> tuple[int, int]:
    """Height and width that the file is made for.

    Raises:
        ValueError: if the graph does not take them.
    """
    if size is None:
        size = max(SMALLEST, model.input.size) if isinstance(model, Classifier) else DENSE_SIDE
    height, width = (size, size) if isinstance(size, int) else size
    multiple = _multiple(model)
    smallest = DETECTOR_SMALLEST if isinstance(model, Detector) else SMALLEST
    if not all(smallest <= side <= LARGEST and side % multiple == 0 for side in (height, width)):
        steps = f", in steps of {multiple}" if multiple > 1 else ""
        raise ValueError(
            f"An exported {type(model).__name__.lower()} takes sides of {smallest} to {LARGEST} pixels{steps};"
            f" got {height}x{width}."
        )
    return height, width


def _check(compared: Compared, dtype: str, format: str) -> None:
    """Raises: ValueError if the answers differ by more than the type allows."""
    if not compared.difference <= ERRORS[dtype]:
        raise ValueError(
            f"The {format} file answers otherwise than the model: by {compared.difference:.1e} of the largest"
            f" answer at {compared.worst}; allowed are {ERRORS[dtype]:g}. Nothing was written."
        )
