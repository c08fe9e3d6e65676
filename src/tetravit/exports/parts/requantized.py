"""Repeat what the certificate of a file in 8 bits says: its predictions on the images held out, its speed.

A file in 8 bits may be far from its model in each output, so that its tolerance says little: its predictions count.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from tetravit import exports
from tetravit.data.datasets import DATASETS
from tetravit.exports.base import Run, Target
from tetravit.exports.compare import Compared
from tetravit.exports.parts import int8
from tetravit.exports.parts.certificate import NOT_REPEATED, Certificate, Quantized, Row, Score, Timed

DRIFT = 0.1  # of the largest output: by which outputs of 8 bits may differ between processors


@dataclass(frozen=True)
class Repeated:
    """rows: of a table. problem: why predictions are not as they should be; "": they are. notes: further lines."""

    rows: tuple[Row, ...]
    problem: str
    notes: tuple[str, ...]


def repeat(
    path: Path,
    run: Run,
    model: Any,
    certificate: Certificate,
    sides: tuple[int, int],
    target: Target,
    example: Tensor,
    calibrate: str | Path | None,
) -> Repeated:
    """Predict the images held out again, and time the file beside its model in bfloat16 and float32.

    Args:
        path, run: the file.
        model: what it was exported from, on the CPU, in evaluation mode.
        certificate: of the file, with `quantized`.
        sides: height and width of the images.
        target: the format of the file.
        example: prepared images (1, C, Hi, Wi) that are timed.
        calibrate: where the images are that it was calibrated on; None: where they were then.

    Raises:
        ValueError: for images that are given and are not those of the certificate.
    """
    quantized = certificate.quantized
    assert quantized is not None
    images, notes = _images(model, quantized, calibrate)
    share, problem = None, ""
    if images is not None:
        share = int8.held_out(model, int8.batches_of(model, images, sides)).share(run)
        if share < 1 - quantized.max_drop:
            problem = (
                f"{path} changes {100 * (1 - share):.1f} % of the predictions for {quantized.held_out} images held"
                f" out of calibration; the certificate allows {100 * quantized.max_drop:g} %"
            )
    try:
        speeds = _timed(path, model, sides, target, example)
        why = int8.refusal(speeds)
        notes += [f"{why}."] if why else []
    except ValueError as error:
        speeds = None
        notes.append(f"The speed in bfloat16 and float32 is not repeated: {error}")
    return Repeated(_rows(quantized, share, speeds), problem, tuple(notes))


def not_repeated(quantized: Quantized) -> tuple[Row, ...]:
    """The rows of a file whose weights are not here."""
    return _rows(quantized, None, None)


def _rows(quantized: Quantized, share: float | None, speeds: Timed | None) -> tuple[Row, ...]:
    here = [NOT_REPEATED if share is None else f"{100 * share:.2f} %"]
    here.append(NOT_REPEATED if speeds is None else _rates(speeds))
    return (
        Row(f"equal on {quantized.held_out} images held out", f"{100 * quantized.equal:.2f} %", here[0]),
        Row("images/s in int8, bfloat16, float32", _rates(quantized.timed), here[1]),
    )


def worse(
    path: Path, certificate: Certificate, compared: Compared, scores: Mapping[str, Score], scored: int
) -> str:
    """Why a file predicts worse than where it was written, for the same images; "": it does not.

    Of the predictions that were equal there, and of the scores, `max_drop` may be lost, at least one prediction.
    """
    assert certificate.quantized is not None
    most = certificate.quantized.max_drop
    if not compared.difference <= certificate.difference + DRIFT:
        return (
            f"{path} differs more from the model than where it was written: by {compared.difference:.1e} of the"
            f" largest output at {compared.worst}, there by {certificate.difference:.1e}"
        )
    count = certificate.objects or sum(shape[0] for shape in certificate.shapes)
    for name, then in certificate.equal.items():
        here = compared.equal.get(name, 1.0)
        if here < then - max(most, 1 / count) - 1e-9:
            return (
                f"{path} predicts otherwise than where it was written: {100 * here:.2f} % of {name} are equal to the"
                f" model's, there {100 * then:.2f} %"
            )
    for name, score in certificate.scores.items():
        if name not in scores or scored != certificate.scored:
            continue
        here = scores[name].after
        if here < score.after - max(most, 1 / scored) - 1e-9:
            return (
                f"{path} scores lower than where it was written: {name} {100 * here:.2f} %, there"
                f" {100 * score.after:.2f} %"
            )
    return ""


def _images(
    model: Any, quantized: Quantized, calibrate: str | Path | None
) -> tuple[int8.Images | None, list[str]]:
    """The images that a file was calibrated on, and why they are not here; None: they are not."""
    source = str(quantized.source if calibrate is None else calibrate)
    if calibrate is None and not (source and (Path(source).is_dir() or source in DATASETS)):
        return None, [
            f"The images that the file was calibrated on, {quantized.images}, are not here: --calibrate DATA."
        ]
    try:
        images = int8.calibration_images(model, source)
        if images.digest != quantized.digest:
            raise ValueError(
                f"{source} holds other images than the file was calibrated on: SHA-256 {images.digest[:12]}..., in"
                f" the certificate {quantized.digest[:12]}...."
            )
    except ValueError as error:
        if calibrate is not None:
            raise
        return None, [str(error)]
    return images, []


def _timed(
    path: Path,
    model: Any,
    sides: tuple[int, int],
    target: Target,
    example: Tensor,
) -> Timed:
    """The speed of a file, and of its model in float32 and bfloat16, which is exported again."""
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "plain.xml"
        exports.export(model, plain, size=sides, fold=bool(target.facts(path).get("folded")), score_images=0)
        return int8.timed(plain, path, (example, *model.other_inputs(example)))


def _rates(speeds: Timed) -> str:
    return f"{speeds.int8:.3g}, {speeds.bfloat16:.3g}, {speeds.float32:.3g}"
