"""`tetravit export`: a model for other programs, with proof that it answers the same."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from tetravit.cli.base import AcceptLicense, print_rows, say


def export(
    model: Annotated[
        str, typer.Argument(help="A run folder, a weights file, a published name, or a plain model name.")
    ],
    to: Annotated[
        Path, typer.Option(metavar="FILE", help="Where to: .onnx, .pt2 (torch) or .xml (OpenVINO).")
    ],
    format: Annotated[
        str | None,
        typer.Option(help="One of `tetravit list exports`, where the ending of FILE shall not decide."),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="PX|HxW", help="Images the file is fastest at; it takes every size. The model's own."
        ),
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16.")] = "float32",
    optimized: Annotated[
        bool, typer.Option("--optimize", help="Fold batch norms into the convolutions before them.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
    accept_license: AcceptLicense = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Write a model as one program for images of any batch and size, and compare its answers."""
    sides = _size(size)
    from tetravit.backbones import ALIASES, VARIANTS
    from tetravit.exports import Model, place
    from tetravit.exports import export as write
    from tetravit.models import create_model, load

    existing: Literal["replace", "refuse"] = "replace" if force else "refuse"
    place(to, format, existing)  # before minutes are spent
    if (model in VARIANTS or model in ALIASES) and not Path(model).exists():
        say(
            f"{model} names no weights: they are random. `tetravit list weights '{model}.*'` shows published ones."
        )
        found: Model = create_model(model)
        licence = ""
    else:
        found = load(model, accept_license=accept_license)
        licence = _licence(model)
    row = write(
        found,
        to,
        format,
        size=sides,
        dtype=dtype,
        fold="on" if optimized else "off",
        existing=existing,
        licence=licence,
    )
    if as_json:
        print_rows([{**asdict(row), "files": [str(file) for file in row.files]}])
        return
    objects = "" if row.objects is None else f", {row.objects} objects in them"
    say(
        f"Wrote {' and '.join(str(file) for file in row.files)} ({row.format}, {row.dtype},"
        f" {row.size / 2**20:.1f} MiB). Loaded again, it answers as the model does: the largest difference is"
        f" {row.difference:.1e} of the largest answer, on {len(row.shapes)} batches of two sizes{objects}."
    )


def _size(text: str | None) -> int | tuple[int, int] | None:
    """What --size says; None: nothing.

    Raises:
        ValueError: if it does not read.
    """
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() for part in parts):
        raise ValueError(f"--size takes a side in pixels, or height x width as in 480x640; got {text!r}.")
    return int(parts[0]) if len(parts) == 1 else (int(parts[0]), int(parts[1]))


def _licence(name: str) -> str:
    """The licence of weights, where they say it."""
    from tetravit.weights import CHECKPOINTS
    from tetravit.weights.fileformat import is_ours, read_header

    if name in CHECKPOINTS:
        return CHECKPOINTS[name].licence
    path = Path(name)
    path = path / "best.safetensors" if path.is_dir() else path
    return read_header(path).licence if path.is_file() and is_ours(path) else ""
