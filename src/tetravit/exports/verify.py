"""Repeat the comparison of a certificate, on another machine say."""

from dataclasses import dataclass
from pathlib import Path

from tetravit import exports
from tetravit.exports.base import Run, Target
from tetravit.exports.compare import batches_of, compare, compare_recorded, speed
from tetravit.exports.parts.certificate import (
    Certificate,
    place_of,
    read_certificate,
    sha256_of,
    versions_of,
    weights_digest,
)
from tetravit.exports.parts.opening import opened
from tetravit.exports.parts.pictures import gather
from tetravit.exports.parts.program import Program
from tetravit.exports.parts.scores import compare_scores
from tetravit.models import Model, load
from tetravit.registry import pick
from tetravit.runtimes.base import quiet
from tetravit.weights import CHECKPOINTS

ELSEWHERE = 10  # times the tolerance, for outputs recorded on another machine


@dataclass(frozen=True)
class Row:
    """A quantity of the certificate beside the same here; "" where there is none."""

    name: str
    certificate: str
    here: str


@dataclass(frozen=True)
class Verified:
    """The comparison of a file, repeated here.

    rows: of a table. problem: why it is not as it should be, in one line; "": it is. notes: further lines. weights:
    what it was compared with; "" for the outputs that the certificate holds.
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
) -> Verified:
    """Check an exported file against its certificate, and compare it with its model again.

    Without weights, neither given nor at the place that the certificate names, the outputs for drawn scenes are
    compared with those that the certificate holds, within ten times the tolerance.

    Args:
        file: the exported file, the main one of several.
        images: a folder of images to compare on; None: those of the certificate where they are here, else usual ones.
        weights: the weights it was exported from: a file, a run folder, NAME.TAG; None: what the certificate names.
        certificate: None: FILE.certificate.json.
        trust: run files whose formats hold code, those of torch and AOTInductor.
        score_images: labelled images for the scores; None: as many as in the certificate.

    Raises:
        ValueError: if there is no certificate, it is that of another file, a file was edited or is missing, what runs
            it is missing, the weights are others, or a file that holds code is not trusted.
    """
    path = Path(file)
    paper = place_of(path) if certificate is None else Path(certificate)
    found = read_certificate(paper)
    target = pick(exports.TARGETS, found.target, "format")
    check_files(path, paper, found)
    run = opened(path, target, trust)
    model, source, notes = _weights(found, weights)
    if model is None:
        if images is not None:
            raise ValueError(
                "--images compares with the model, whose weights are not here: give them with --weights FILE."
            )
        return _against_record(path, found, run, notes)
    pictures = gather(model, images, source)
    with quiet():
        sides = (found.shapes[0][2], found.shapes[0][3])
        batches = batches_of(model, pictures.pictures, sides)
        compared = compare(model, run, batches, "all" if found.matched == 1 else "matched")
        rate = speed(model, run, next(batches_of(model, pictures.pictures, sides)))
        wanted = found.scored if score_images is None else score_images
        scores, scored, _ = compare_scores(
            model, lambda: Program(run, target.facts(path), path.name), source, sides, wanted
        )
    rows = [
        _versions(found, target),
        Row("images", found.images, pictures.text),
        Row("largest difference", f"{found.difference:.1e}", f"{compared.difference:.1e}"),
    ]
    before = {row.name: row for row in found.outputs}
    for row in compared.outputs:
        known = before.get(row.name)
        rows.append(
            Row(
                f"{row.name}: largest, mean",
                f"{known.largest:.1e}, {known.mean:.1e}" if known else "",
                f"{row.largest:.1e}, {row.mean:.1e}",
            )
        )
    for name in dict.fromkeys((*found.equal, *compared.equal)):
        rows.append(Row(f"equal {name}", _percent(found.equal.get(name)), _percent(compared.equal.get(name))))
    for name in dict.fromkeys((*found.scores, *scores)):
        told = [
            f"{100 * s[name].before:.2f} %, {100 * s[name].after:.2f} % ({count} images)" if name in s else ""
            for s, count in ((found.scores, found.scored), (scores, scored))
        ]
        rows.append(Row(f"{name} before, after", *told))
    rows.append(
        Row(
            "times the model's images/s",
            f"{found.speed.ratio:.2f}" if found.speed else "",
            f"{rate.ratio:.2f}",
        )
    )
    problem = ""
    if not compared.difference <= found.tolerance:
        problem = (
            f"{path} differs from the model: by {compared.difference:.1e} of the largest output at"
            f" {compared.worst}; the certificate allows {found.tolerance:g}"
        )
    elif found.matched < 1 and compared.matched < found.matched:
        problem = (
            f"{path} differs from the model: {100 * compared.matched:.1f} % of the objects are found by both; the"
            f" certificate allows {100 * found.matched:g} %"
        )
    return Verified(path, found, tuple(rows), problem, (*notes, *pictures.notes), str(source))


def check_files(path: Path, paper: Path, found: Certificate) -> None:
    """Check that files are those of a certificate.

    Raises:
        ValueError: if one is missing, was edited, or the certificate is that of another file.
    """
    for name, wanted in found.files.items():
        place = path.with_suffix(Path(name).suffix)
        if not place.is_file():
            raise ValueError(f"There is no file {place}, which {paper} is about.")
        got = sha256_of(place)
        if got == wanted:
            continue
        if place.name != name:
            raise ValueError(
                f"{paper} is the certificate of another file: of {name} (SHA-256 {wanted[:12]}...), not of {place}"
                f" ({got[:12]}...)."
            )
        raise ValueError(
            f"{place} was changed after its certificate was written: its SHA-256 begins with {got[:12]}, that in"
            f" {paper} with {wanted[:12]}."
        )


def _weights(found: Certificate, given: str | Path | None) -> tuple[Model | None, str, list[str]]:
    """The model that a file was exported from, what it was loaded from, and lines about it; None: not here.

    Raises:
        ValueError: for weights that are not those of the certificate.
    """
    source = str(given if given is not None else found.weights_source)
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
    if got != found.weights:
        raise ValueError(
            f"{source} holds other weights than the file was exported from: SHA-256 {got[:12]}..., in the"
            f" certificate {found.weights[:12]}...."
        )
    return model, source, []


def _against_record(path: Path, found: Certificate, run: Run, notes: list[str]) -> Verified:
    recorded = found.recorded
    if recorded is None:
        raise ValueError(f"{path} is compared with its weights: give them with --weights FILE.")
    names = [row.name for row in found.outputs]
    if found.task == "detect":
        names = ["boxes", "scores", "labels", "valid", *(["masks"] if "masks" in names else [])]
    with quiet():
        difference = compare_recorded(recorded, names, run)
    allowed = ELSEWHERE * found.tolerance
    rows = (
        _versions(found, exports.TARGETS[found.target]),
        Row("images", found.images, f"{recorded.shape[0]} drawn scenes"),
        Row("largest difference", f"{found.difference:.1e}", f"{difference:.1e} of the recorded outputs"),
    )
    problem = ""
    if not difference <= allowed:
        problem = (
            f"{path} gives other outputs here than where it was written: they differ by {difference:.1e} of the"
            f" largest; {allowed:g} is allowed"
        )
    return Verified(path, found, rows, problem, tuple(notes), "")


def _versions(found: Certificate, target: Target) -> Row:
    name = next((name for name in target.packages if name in found.versions), "torch")
    return Row(name, found.versions.get(name, ""), versions_of(target.packages).get(name, ""))


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f} %"
