"""Repeat the comparison of a certificate, on another machine say."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tetravit import exports
from tetravit.exports.base import Run, Target
from tetravit.exports.compare import Compared, batches_of, compare, compare_recorded, speed
from tetravit.exports.parts import requantized
from tetravit.exports.parts.certificate import (
    NOT_REPEATED,
    Certificate,
    Row,
    Score,
    Speed,
    place_of,
    read_certificate,
    sha256_of,
    versions_of,
    weights_digest,
)
from tetravit.exports.parts.opening import opened
from tetravit.exports.parts.pictures import Pictures, gather
from tetravit.exports.parts.program import Program
from tetravit.exports.parts.scores import compare_scores
from tetravit.models import Model, load
from tetravit.registry import pick
from tetravit.runtimes.base import quiet
from tetravit.weights import CHECKPOINTS

ELSEWHERE = 10  # times the tolerance, for outputs recorded on another machine


@dataclass(frozen=True)
class Verified:
    """The comparison of a file, repeated here.

    rows: of a table. problem: why it is not as it should be, in one line; "": it is. notes: further lines, why
    something was not repeated, say. weights: what it was compared with; "" for the outputs in the certificate.
    """

    file: Path
    certificate: Certificate
    rows: tuple[Row, ...]
    problem: str
    notes: tuple[str, ...]
    weights: str


def verify_export(
    file: str | Path,
    *,
    images: str | Path | None = None,
    weights: str | Path | None = None,
    certificate: str | Path | None = None,
    trust: bool = False,
    score_images: int | None = None,
    calibrate: str | Path | None = None,
) -> Verified:
    """Check an exported file against its certificate, and compare it with its model again.

    Without weights, neither given nor at the place that the certificate names, the outputs for drawn scenes are
    compared with those that the certificate holds: within ten times the tolerance, of int8 within 0.1. A file in int8
    may be far from its model, so its predictions are compared: on the images held out of calibration `max_drop` of
    them may differ, on the images of the certificate no more than there by `max_drop`, and so may scores.

    Args:
        file: the exported file, the main one of several.
        images: a folder of images to compare on; None: those of the certificate where they are here, else usual ones.
        weights: the weights it was exported from: a file, a run folder, NAME.TAG; None: what the certificate names.
        certificate: None: FILE.certificate.json.
        trust: run files whose formats hold code, those of torch and AOTInductor.
        score_images: labelled images for the scores; None: as many as in the certificate.
        calibrate: of int8: the images that it was calibrated on, a folder or a data set; None: what the certificate
            names.

    Raises:
        ValueError: if there is no certificate, it is that of another file, a file was edited or is missing, what runs
            it is missing, the weights or the images to calibrate with are others, or a file that holds code is not
            trusted.
    """
    path = Path(file)
    place = place_of(path) if certificate is None else Path(certificate)
    expected = read_certificate(place)
    target = pick(exports.TARGETS, expected.target, "format")
    check_files(path, place, expected)
    if calibrate is not None and expected.quantized is None:
        raise ValueError(f"--calibrate goes with int8; {path} computes in {expected.precision}.")
    run = opened(path, target, trust)
    model, source, notes = _weights(expected, weights)
    if model is None:
        for option, value in (("--images", images), ("--calibrate", calibrate)):
            if value is not None:
                raise ValueError(
                    f"{option} compares with the model, whose weights are not here: give them with --weights FILE."
                )
        return _against_record(path, expected, run, notes)
    pictures, same = _pictures(model, expected, images, source)
    notes += pictures.notes
    sides = (expected.shapes[0][2], expected.shapes[0][3])
    with quiet():
        batches = batches_of(model, pictures.pictures, sides)
        compared = compare(model, run, batches, "all" if expected.matched == 1 else "matched")
        example = next(batches_of(model, pictures.pictures, sides))
        rate = speed(model, run, example)
        wanted = expected.scored if score_images is None else score_images
        scores, scored, why = compare_scores(
            model, lambda: Program(run, target.facts(path), path.name), source, sides, wanted
        )
    if expected.scores and not scores:
        notes.append(f"The scores are not repeated: {why}.")
    rows = [
        *_compared_rows(expected, target, pictures.text, compared),
        *_scored_rows(expected, scores, scored),
        _speed_row(expected, rate),
    ]
    problem = _problem(path, expected, compared)
    if expected.quantized is not None:
        with quiet():
            again = requantized.repeat(path, run, model, expected, sides, target, example, calibrate)
        rows += again.rows
        notes += again.notes
        drop = requantized.worse(path, expected, compared, scores, scored) if same else ""
        problem = problem or again.problem or drop
    return Verified(path, expected, tuple(rows), problem, tuple(notes), source)


def check_files(path: Path, place: Path, expected: Certificate) -> None:
    """Check that files are those of the certificate `expected`, read from `place`.

    Raises:
        ValueError: if one is missing, was edited, or the certificate is that of another file.
    """
    for name, wanted in expected.files.items():
        part = path.with_suffix(Path(name).suffix)
        if not part.is_file():
            raise ValueError(f"There is no file {part}, which {place} is about.")
        got = sha256_of(part)
        if got == wanted:
            continue
        if part.name != name:
            raise ValueError(
                f"{place} is the certificate of another file: of {name} (SHA-256 {wanted[:12]}...), not of {part}"
                f" ({got[:12]}...)."
            )
        raise ValueError(
            f"{part} was changed after its certificate was written: its SHA-256 begins with {got[:12]}, that in"
            f" {place} with {wanted[:12]}."
        )


def _weights(expected: Certificate, given: str | Path | None) -> tuple[Model | None, str, list[str]]:
    """The model that a file was exported from, what it was loaded from, and lines about it; None: not here.

    Raises:
        ValueError: for weights that are not those of the certificate.
    """
    source = str(given if given is not None else expected.weights_source)
    if given is None:
        if not source:
            return None, "", ["The certificate names no weights: compared with the outputs in it."]
        if not Path(source).exists() and source not in CHECKPOINTS:
            return (
                None,
                "",
                [f"The weights {source} are not here: compared with the outputs in the certificate."],
            )
    model = load(source)
    got = weights_digest(model)
    if got != expected.weights:
        raise ValueError(
            f"{source} holds other weights than the file was exported from: SHA-256 {got[:12]}..., in the"
            f" certificate {expected.weights[:12]}...."
        )
    return model, source, []


def _pictures(
    model: Model, expected: Certificate, images: str | Path | None, source: str
) -> tuple[Pictures, bool]:
    """The images to compare on, and whether they are those of the certificate, as far as their names say."""
    folder = expected.image_folder
    if images is None and folder and Path(folder).is_dir():
        images = folder
    pictures = gather(model, images, source)
    return pictures, (pictures.source, pictures.text) == (expected.image_source, expected.images)


def _against_record(path: Path, expected: Certificate, run: Run, notes: list[str]) -> Verified:
    """Compare with the outputs that the certificate holds; whatever needs the model is not repeated."""
    recorded = expected.recorded
    if recorded is None:
        raise ValueError(f"{path} is compared with its weights: give them with --weights FILE.")
    names = [row.name for row in expected.outputs]
    if expected.task == "detect":
        names = ["boxes", "scores", "labels", "valid", *(["masks"] if "masks" in names else [])]
    with quiet():
        difference = compare_recorded(recorded, names, run)
    allowed = requantized.DRIFT if expected.precision == "int8" else ELSEWHERE * expected.tolerance
    rows = [
        _versions(expected, exports.TARGETS[expected.target]),
        Row("images", expected.images, f"{recorded.shape[0]} drawn scenes"),
        Row("largest difference", f"{expected.difference:.1e}", f"{difference:.1e} of the recorded outputs"),
        *(Row(f"equal {name}", _percent(share), NOT_REPEATED) for name, share in expected.equal.items()),
        *_scored_rows(expected, {}, 0),
        *([_speed_row(expected, None)] if expected.speed else []),
        *(requantized.not_repeated(expected.quantized) if expected.quantized else ()),
    ]
    problem = ""
    if not difference <= allowed:
        problem = (
            f"{path} gives other outputs here than where it was written: they differ by {difference:.1e} of the"
            f" largest; {allowed:g} is allowed"
        )
    return Verified(path, expected, tuple(rows), problem, tuple(notes), "")


def _problem(path: Path, expected: Certificate, compared: Compared) -> str:
    """Why the outputs of a file are not those of the model; "": they are."""
    if not compared.difference <= expected.tolerance:
        return (
            f"{path} differs from the model: by {compared.difference:.1e} of the largest output at"
            f" {compared.worst}; the certificate allows {expected.tolerance:g}"
        )
    if expected.matched < 1 and compared.matched < expected.matched:
        return (
            f"{path} differs from the model: {100 * compared.matched:.1f} % of the objects are found by both; the"
            f" certificate allows {100 * expected.matched:g} %"
        )
    return ""


def _compared_rows(expected: Certificate, target: Target, images: str, compared: Compared) -> list[Row]:
    rows = [
        _versions(expected, target),
        Row("images", expected.images, images),
        Row("largest difference", f"{expected.difference:.1e}", f"{compared.difference:.1e}"),
    ]
    before = {row.name: row for row in expected.outputs}
    for row in compared.outputs:
        known = before.get(row.name)
        rows.append(
            Row(
                f"{row.name}: largest, mean",
                f"{known.largest:.1e}, {known.mean:.1e}" if known else "",
                f"{row.largest:.1e}, {row.mean:.1e}",
            )
        )
    for name in dict.fromkeys((*expected.equal, *compared.equal)):
        shares = (_percent(equal.get(name)) for equal in (expected.equal, compared.equal))
        rows.append(Row(f"equal {name}", *shares))
    return rows


def _scored_rows(expected: Certificate, scores: Mapping[str, Score], scored: int) -> list[Row]:
    """A row for each score; `scores` of `scored` images here, {} where they are not repeated."""

    def text(table: Mapping[str, Score], name: str, images: int) -> str:
        if name not in table:
            return ""
        return f"{100 * table[name].before:.2f} %, {100 * table[name].after:.2f} % ({images} images)"

    return [
        Row(
            f"{name} before, after",
            text(expected.scores, name, expected.scored),
            text(scores, name, scored) or NOT_REPEATED,
        )
        for name in dict.fromkeys((*expected.scores, *scores))
    ]


def _speed_row(expected: Certificate, here: Speed | None) -> Row:
    then = f"{expected.speed.ratio:.2f}" if expected.speed else ""
    return Row("times the model's images/s", then, f"{here.ratio:.2f}" if here else NOT_REPEATED)


def _versions(expected: Certificate, target: Target) -> Row:
    name = next((name for name in target.packages if name in expected.versions), "torch")
    return Row(name, expected.versions.get(name, ""), versions_of(target.packages).get(name, ""))


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f} %"
