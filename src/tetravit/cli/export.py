"""`tetravit export`: write a model for other programs, and verify the file against the model."""

from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tetravit.cli.base import AcceptLicense, announcing, print_rows, say

if TYPE_CHECKING:
    from tetravit.exports import Certificate


def export(
    model: Annotated[
        str, typer.Argument(help="A run folder, a weights file, a published name, or a plain model name.")
    ],
    to: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="Output: .onnx, .pt2 (torch, or --format aotinductor) or .xml (OpenVINO); a folder with"
            " --format web.",
        ),
    ],
    format: Annotated[
        str | None,
        typer.Option(help="One of `tetravit list exports`, overrides the extension of FILE."),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="PX|HxW",
            help="Images the file is fastest at; it takes sides of 64 to 4096, a detector's of 160 "
            "(dino_detr: 96) to 4096 in steps of 32. The model's own.",
        ),
    ] = None,
    dtype: Annotated[
        str, typer.Option("--dtype", "--precision", help="float32, float16, bfloat16 or int8 (OpenVINO).")
    ] = "float32",
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Compare on the images of this folder. Else on the validation set of the run, or on two photographs "
            "of scikit-learn and drawn scenes.",
        ),
    ] = None,
    score_images: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=0,
            help="Labelled validation images for the scores before and after: 256 of a classifier, 32 of others; 0: "
            "none.",
        ),
    ] = None,
    calibrate: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Of int8: a folder of images like those of the application, or the name of a data set (digits).",
        ),
    ] = None,
    max_drop: Annotated[
        float,
        typer.Option(metavar="SHARE", help="Of int8: the largest share of predictions that may change."),
    ] = 0.01,
    accept_slower: Annotated[
        bool,
        typer.Option(
            "--accept-slower", help="Of int8: write a file that is not faster than bfloat16 on this machine."
        ),
    ] = False,
    optimized: Annotated[
        bool, typer.Option("--optimize", help="Fold batch norms into the convolutions before them.")
    ] = False,
    runtime: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Of --format web: the npm package onnxruntime-web, its folder or .tgz; fetched by npm if not given.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
    accept_license: AcceptLicense = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Write a model as one program for images of any batch and many sizes, with a certificate beside it.

    The file is compared with the model on real images; FILE.certificate.json holds the differences.
    """
    sides = _size(size)
    from tetravit.backbones import ALIASES, VARIANTS
    from tetravit.exports import FOLDERS, Model, check_folder, place
    from tetravit.exports import export as write
    from tetravit.exports.base import silent
    from tetravit.models import create_model, load

    existing: Literal["replace", "refuse"] = "replace" if force else "refuse"
    if format is not None and format in FOLDERS:  # before the long export
        check_folder(to, FOLDERS[format], existing)
    else:
        place(to, format, existing)
    if (model in VARIANTS or model in ALIASES) and not Path(model).exists():
        say(
            f"{model} has no weights: they are random. `tetravit list weights '{model}.*'` shows published ones."
        )
        loaded: Model = create_model(model)
        licence, weights = "", ""
    else:
        loaded = load(model, accept_license=accept_license)
        licence, weights = _licence(model, accept_license), model
    with nullcontext(silent) if as_json else announcing() as announce:
        row = write(
            loaded,
            to,
            format,
            size=sides,
            dtype=dtype,
            fold=optimized,
            existing=existing,
            licence=licence,
            images=images,
            weights=weights,
            score_images=score_images,
            calibrate=calibrate,
            max_drop=max_drop,
            slower="accept" if accept_slower else "refuse",
            settings={} if runtime is None else {"runtime": runtime},
            announce=announce,
        )
    if as_json:
        print_rows([{**asdict(row), "files": [str(file) for file in row.files]}])
        return
    objects = "" if row.objects is None else f", {row.objects} objects in them"
    written = [to] if format in FOLDERS else row.files
    say(
        f"Wrote {' and '.join(str(file) for file in written)} ({row.format}, {row.dtype},"
        f" {row.size / 2**20:.1f} MiB). Verified: max relative error"
        f" {row.difference:.1e} over {len(row.shapes)} batches of"
        f" {len({shape[2:] for shape in row.shapes})} sizes{objects}."
    )
    if row.certificate is not None:
        for note in row.certificate.notes:
            say(f"{note}.")
        say(f"Compared on {row.certificate.images}{_predictions(row.certificate)}.")
    if row.format == "web":
        say(f"Any host of static files serves it; here: python -m http.server --directory {to}")
    if row.objects == 0:
        say("The model detected no object in the test images, so no box was compared.")


def _predictions(paper: "Certificate") -> str:
    """Equal predictions, scores and speed of a certificate, after a colon; "" where there are none."""
    parts = [f"{100 * share:.4g} % of {name} equal" for name, share in paper.equal.items()]
    parts += [
        f"{name} {100 * row.before:.2f} % before and {100 * row.after:.2f} % after on {paper.scored} images"
        for name, row in paper.scores.items()
    ]
    if paper.speed is not None:
        parts.append(f"{paper.speed.ratio:.2f} times the images/s of the plain model")
    return f": {', '.join(parts)}" if parts else ""


def _size(text: str | None) -> int | tuple[int, int] | None:
    """The value of --size; None: not given.

    Raises:
        ValueError: if it cannot be parsed.
    """
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() for part in parts):
        raise ValueError(f"--size takes a side in pixels, or height x width as in 480x640; got {text!r}.")
    return int(parts[0]) if len(parts) == 1 else (int(parts[0]), int(parts[1]))


def _licence(name: str, accept_license: bool) -> str:
    """The licence of loaded weights, where it is known."""
    from tetravit.weights.convert import find, header_for

    best = Path(name) / "best.safetensors"
    resolved = find(best if best.is_file() else name, accept_license=accept_license)
    return header_for(resolved, name, 0).licence


VERBS = {"export": export}
