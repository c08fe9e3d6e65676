"""A model to another format, verified against the model.

Shapes: B batch, C channels, K classes, P detections, (Hi, Wi) image in pixels.
"""

import copy
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tetravit import exports
from tetravit.benchmark.speed import device_name
from tetravit.exports.base import DTYPES, ERRORS, Announce, Graph, Run, Target, held, silent
from tetravit.exports.compare import Compared, announced, batches_of, colours_of, compare, record, speed
from tetravit.exports.parts import int8
from tetravit.exports.parts.around import export_folder
from tetravit.exports.parts.certificate import (
    Certificate,
    Quantized,
    place_of,
    sha256_of,
    versions_of,
    weights_digest,
)
from tetravit.exports.parts.pictures import Pictures, gather
from tetravit.exports.parts.precision import Float32Norms, to_half
from tetravit.exports.parts.program import Program
from tetravit.exports.parts.scores import compare_scores
from tetravit.models.portable import Portable, check_model, flat
from tetravit.registry import pick
from tetravit.runtimes.base import CannotRun, capture, fold, quiet
from tetravit.weights.fileformat import package_version

MATCHED = {"float32": 1.0}  # the least share of a detector's objects that both find; of other types `LEAST`
LEAST = 0.95
DENSE_SIDE = 320  # pixels: what models of dense tasks are written for where no size is given

Model = Portable


@dataclass(frozen=True)
class Exported:
    """What was written.

    files: the main one first. size: total bytes. difference: the largest between its outputs and the model's, as a
    share of the largest output. shapes: of the images on which they were compared. objects: that a detector found
    in them; 0: none, so no box was compared; None: no detector. certificate: lies beside the main file, see
    `certificate_file`.
    """

    files: tuple[Path, ...]
    format: str
    dtype: str
    size: int
    difference: float
    shapes: tuple[tuple[int, ...], ...]
    objects: int | None
    certificate: Certificate | None = None

    @property
    def certificate_file(self) -> Path:
        return place_of(self.files[0])


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
    images: str | Path | None = None,
    weights: str | Path = "",
    score_images: int | None = None,
    calibrate: str | Path | None = None,
    max_drop: float = 0.01,
    slower: Literal["refuse", "accept"] = "refuse",
    settings: Mapping[str, Any] | None = None,
    announce: Announce = silent,
) -> Exported:
    """Write a model as a program for images of any batch and size, and verify that its outputs are the model's.

    Sides are 64 to 4096 pixels, of a classifier of smaller images from their size on; for detectors 160 to 4096
    (DINO-DETR: from 96 on), in steps of 32. The file is loaded again and compared with the model on real images,
    prepared at `size`, a larger and a smaller size, in two batch sizes. It appears whole or not at all, with
    FILE.certificate.json beside it, and only where the outputs agree: float32 within 2e-5 of the largest, float16
    within 0.02, bfloat16 within 0.1. Of a detector in float32 every object is found by both, of one in 16 bits 95 %
    of them. A detector that finds nothing in these images has no boxes to compare: `objects` of the result is 0.
    Inputs are float32 `images`, normalized, and for detectors `sizes` (B, 2) int64, the height and width of each
    image without its padding; detections come filled up to a fixed number per image, marked by `valid`. The file says
    what it holds: model, task, class names, how pictures are prepared.

    Args:
        model: a classifier, segmenter, detector, or backbone with four maps, on a CPU or GPU; it stays as it is.
        path: the file; its folder exists.
        format: of `TARGETS`, or of `FOLDERS`; None: what the ending of `path` says.
        size: side or (height, width) in pixels that the file is fastest at; None: a classifier's own;
            320 for the others.
        dtype: float32, float16 or bfloat16, what it computes in; norms and softmax stay in float32. int8: for
            OpenVINO, products and convolutions in 8 bits (extra `int8`).
        fold: fold batch norms into the convolutions before them.
        existing: "replace": overwrite an existing file.
        licence: of the weights, stored in the file.
        images: a folder of images to compare on; None: the validation set of the run that made `weights`, where it
            is here, else two photographs of scikit-learn and drawn scenes.
        weights: what the model was loaded from, named in the certificate: a run folder, a weights file, NAME.TAG.
        score_images: labelled images of the validation set on which model and file are scored; None: 256 for
            classifiers, 32 for others; 0: none.
        calibrate: of int8: a folder of images like those of the application, or a data set without a folder.
        max_drop: of int8: the largest share of predictions (classes, pixels, objects) that may change, on a third of
            these images.
        slower: of int8: "accept": write a file that is not faster than bfloat16 on this machine.
        settings: of a folder's format alone, by name: `runtime` of "web".
        announce: called with a line at the start of each step, and of each batch that is compared.

    Raises:
        ValueError: for an unknown format or type, a place that cannot be written to, a package that is missing, a
            model that the format cannot hold, an optimised model, or outputs that differ.
    """
    check_model(model, "export")
    if hasattr(model, "optimized"):
        raise ValueError("An optimised model is not exported; export the model it was made of.")
    path = Path(path)
    if calibrate is not None and dtype != "int8":
        raise ValueError(f"calibrate, --calibrate, goes with int8; got dtype {dtype!r}.")
    if format is not None and format in exports.FOLDERS:
        return export_folder(
            model,
            path,
            format,
            existing=existing,
            settings=settings or {},
            announce=announce,
            size=size,
            dtype=dtype,
            fold=fold,
            licence=licence,
            images=images,
            weights=weights,
            score_images=score_images,
        )
    name, target = place(path, format, existing)
    if settings:
        raise ValueError(f"The format {name!r} has no setting {next(iter(settings))!r}.")
    if dtype not in target.dtypes:
        raise ValueError(f"dtype takes one of {', '.join(target.dtypes)} for {name}; got {dtype!r}.")
    why = target.unwritable() or (int8.ready() if dtype == "int8" else "")
    if why:
        raise ValueError(f"The format {name!r} cannot be written: {why}.")
    plain = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    sides, refusal = _sides(plain, size), f"The format {name!r} cannot hold this model"
    pictures = gather(plain, images, weights)
    samples = int8.calibration_images(plain, calibrate, max_drop) if dtype == "int8" else None
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder, quiet():
        draft = Path(folder) / path.name
        announce(f"Tracing the model at {sides[0]} x {sides[1]} pixels")
        try:
            graph = _graph(plain, sides, dtype, folded=fold, licence=licence)
        except CannotRun as error:
            raise ValueError(f"{refusal}: {error}.") from error
        announce(f"Writing {path.name}")
        with held(refusal):
            target.write(graph, draft)
        quantized = None
        if samples is not None:
            announce("Quantizing to 8 bits")
            quantized = int8.apply(draft, plain, samples, sides, max_drop=max_drop, slower=slower)
            pictures = replace(pictures, notes=(*pictures.notes, str(quantized)))
        announce("Loading the file")
        with held(refusal):
            run = held(refusal)(target.load(draft))
        compared = compare_file(plain, run, pictures, sides, dtype, announce)
        _check(compared, dtype, name)
        drafts = [draft.with_suffix(ending) for ending in (target.suffix, *target.beside)]
        certificate = certify(
            plain,
            run,
            compared,
            pictures,
            sides,
            target=name,
            dtype=dtype,
            files={file.name: sha256_of(file) for file in drafts},
            facts=graph.facts if graph else {},
            weights=str(weights),
            score_images=score_images,
            quantized=quantized,
            announce=announce,
        )
        certificate.save(place_of(draft))
        total = sum(file.stat().st_size for file in drafts)
        place(path, format, existing)  # others may have written in the meantime
        for file in (*drafts[1:], place_of(draft), drafts[0]):  # the main file last: where it is, all are
            os.replace(file, path.parent / file.name)
    measured = (compared.difference, compared.shapes, compared.objects)
    return Exported(_files(path, target), name, dtype, total, *measured, certificate)


def compare_file(
    plain: Model,
    run: Run,
    pictures: Pictures,
    sides: tuple[int, int],
    dtype: str,
    announce: Announce = silent,
) -> Compared:
    """Compare a file with its model on pictures; `dtype`: what the file computes in."""
    whole = _least_matched(dtype) == 1
    batches = announced(batches_of(plain, pictures.pictures, sides), announce)
    return compare(plain, run, batches, "all" if whole else "matched")


def certify(
    plain: Model,
    run: Run,
    compared: Compared,
    pictures: Pictures,
    sides: tuple[int, int],
    *,
    target: str,
    dtype: str,
    files: Mapping[str, str],
    facts: Mapping[str, Any],
    weights: str = "",
    score_images: int | None = None,
    quantized: Quantized | None = None,
    announce: Announce = silent,
) -> Certificate:
    """The certificate of a file that was compared with its model.

    Args:
        plain: the model, on the CPU, in evaluation mode.
        run: the file.
        compared, pictures, sides: the comparison.
        target, dtype: what the file is. files: SHA-256 by name, the main one first. facts: of the file.
        weights: what the model was loaded from; "": unknown.
        score_images, announce: as in `export`.
        quantized: of a file in 8 bits: how it was made.
    """
    scores, scored, unscored = compare_scores(
        plain, lambda: Program(run, facts, next(iter(files))), weights, sides, score_images, announce
    )
    announce("Measuring the speed of both")
    return Certificate(
        target=target,
        precision=dtype,
        model=getattr(plain, "name", ""),
        task=getattr(plain, "kind", ""),
        files=dict(files),
        weights=weights_digest(plain),
        weights_source=weights,
        versions=versions_of(exports.TARGETS[target].packages),
        processor=device_name(torch.device("cpu")),
        threads=torch.get_num_threads(),
        image_source=pictures.source,
        images=pictures.text,
        shapes=compared.shapes,
        tolerance=ERRORS[dtype],
        difference=compared.difference,
        matched=_least_matched(dtype),
        objects=compared.objects,
        outputs=compared.outputs,
        equal=compared.equal,
        scores=scores,
        scored=scored,
        unscored=unscored,
        speed=speed(plain, run, next(batches_of(plain, pictures.pictures, sides))),
        recorded=record(run, plain.output_names, sides, *colours_of(plain)),
        quantized=quantized,
        image_folder=pictures.folder,
        notes=pictures.notes,
    )


def place(
    path: Path, format: str | None = None, existing: Literal["refuse", "replace"] = "refuse"
) -> tuple[str, Target]:
    """The name of the format of a file to be written, and its target.

    Raises:
        ValueError: for an unknown format or ending, a folder that does not exist, files or folders that do.
    """
    endings = {target.suffix: name for name, target in exports.TARGETS.items() if target.by_ending}
    if format is None and path.suffix not in endings:
        known = ", ".join(f"{ending} ({name})" for ending, name in sorted(endings.items()))
        raise ValueError(f"The ending of a file says its format: {known}; got {path.name!r}.")
    name = endings[path.suffix] if format is None else format
    if name not in exports.TARGETS:
        pick({**exports.TARGETS, **exports.FOLDERS}, name, "format")
    target = exports.TARGETS[name]
    if path.suffix != target.suffix:
        raise ValueError(f"Files of the format {name!r} end in {target.suffix}; got {path.name!r}.")
    if not path.parent.is_dir():
        raise ValueError(f"There is no folder {str(path.parent)!r}.")
    there = [file for file in (*_files(path, target), place_of(path)) if file.exists()]
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


def _files(path: Path, target: Target) -> tuple[Path, ...]:
    return tuple(path.with_suffix(ending) for ending in (target.suffix, *target.beside))


class _Served(nn.Module):
    """Float32 in and out, whatever is computed in, norms and softmax in float32; a flat tuple comes out."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.dtype = model, dtype

    def forward(self, images: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
        given = images.to(self.dtype)
        with nullcontext() if self.dtype == torch.float32 else Float32Norms():
            outputs = self.model(given) if sizes is None else self.model(given, sizes)
        return tuple(x.float() if x.is_floating_point() else x for x in flat(outputs))


def _graph(model: Model, sides: tuple[int, int], dtype: str, *, folded: bool, licence: str) -> Graph:
    part: nn.Module = copy.deepcopy(model)
    if folded:
        fold(part)
    computed = torch.float32 if dtype == "int8" else DTYPES[dtype]
    if computed != torch.float32:
        to_half(part, computed)
    served = _Served(part, computed).eval()
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
        size = tuple(max(model.program_sides[0], side) for side in model.usual_sides(DENSE_SIDE))
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


def _least_matched(dtype: str) -> float:
    return MATCHED.get(dtype, LEAST)


def _check(compared: Compared, dtype: str, format: str) -> None:
    """Raises: ValueError if the outputs differ by more than the type allows."""
    if not compared.difference <= ERRORS[dtype]:
        raise ValueError(
            f"The {format} file differs from the model: by {compared.difference:.1e} of the largest"
            f" output at {compared.worst}; allowed are {ERRORS[dtype]:g}. Nothing was written."
        )
    if _least_matched(dtype) < 1 and compared.matched < _least_matched(dtype):
        raise ValueError(
            f"The {format} file differs from the model: only {100 * compared.matched:.1f} % of the objects are found"
            f" by both; at least {100 * _least_matched(dtype):g} % are needed. Nothing was written."
        )
