"""The certificate of an exported file: what was written, from what, and how it was compared with the model.

It lies beside the file as FILE.certificate.json.
"""

import hashlib
import json
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, Self

from torch import nn

from tetravit.files import replace_file
from tetravit.weights.fileformat import digests, fingerprint, package_version

FORMAT = 1
ENDING = ".certificate.json"
ORDER = "SHA-256 over name, type, shape and bytes of each tensor; then over these, in the order of the names"
NOT_REPEATED = "not repeated"
ADDED: Mapping[str, Any] = {"quantized": None, "image_folder": ""}  # fields that the first certificates lack

Source = Literal["validation", "folder", "photographs", "drawings"]


@dataclass(frozen=True)
class Row:
    """A quantity of the certificate beside the same here, or `NOT_REPEATED`; "" where there is none."""

    name: str
    certificate: str
    here: str


@dataclass(frozen=True)
class OutputDifference:
    """Differences of one output of the file from the model's, as shares of the model's largest value, at least 1.

    Of a detector: over the matched detections, boxes as a share of the largest coordinate.
    """

    name: str
    largest: float
    mean: float


@dataclass(frozen=True)
class Speed:
    """Images per second of the plain model and of the file, called in turns. shape: of the images (B, C, Hi, Wi)."""

    shape: tuple[int, ...]
    model: float
    file: float

    @property
    def ratio(self) -> float:
        return self.file / self.model


@dataclass(frozen=True)
class Score:
    """A score on labelled images, a share in 0..1: of the model (`before`) and of the file (`after`)."""

    before: float
    after: float


@dataclass(frozen=True)
class Recorded:
    """Outputs of the file for drawn scenes, with which it is compared where the weights are not at hand.

    shape: of the images (B, C, Hi, Wi), which `compare.pictures` draws from `mean` and `std`. values: by output; of a
    detector its detections, else evenly spaced values of the flattened output.
    """

    shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Timed:
    """Images per second of one file in three forms, in turns on the same images (B, C, Hi, Wi)."""

    int8: float
    bfloat16: float
    float32: float
    shape: tuple[int, ...]

    def __str__(self) -> str:
        batch, _, height, width = self.shape
        return (
            f"{self.int8:.3g} images/s, in bfloat16 {self.bfloat16:.3g}, in float32 {self.float32:.3g}"
            f" ({height}x{width}, batch {batch})"
        )

    @property
    def reference(self) -> float:
        """That of bfloat16; of float32 where the processor computes bfloat16 more slowly."""
        return max(self.bfloat16, self.float32)


@dataclass(frozen=True)
class Quantized:
    """How a file in 8 bits was made, and what was measured then.

    source, images: what it was calibrated on, as it was given and in words. digest: SHA-256 of these images.
    held_out: how many of them were left out of calibration. equal: the share of predictions for these that are those
    of the model. max_drop: the largest share of other predictions that was allowed. timed: its speed.
    """

    source: str
    images: str
    digest: str
    held_out: int
    equal: float
    max_drop: float
    timed: Timed

    def __str__(self) -> str:
        return (
            f"int8: calibrated on {self.images}, {100 * self.equal:.4g} % of the predictions for"
            f" {self.held_out} of them, held out, are those of the model; {self.timed}"
        )


@dataclass(frozen=True)
class Certificate:
    """What an exported file is, and how it was compared with its model.

    target, precision: names of `exports.TARGETS` and of the type it computes in. model, task: as in the file; ""
    for a backbone. files: SHA-256 by file name, the main one first. weights: SHA-256 over all tensors, see
    `weights_order`; weights_source: what the model was loaded from, "" where unknown. versions: of tetravit, torch
    and what runs the file. processor, threads: where it was measured. image_source, images: what it was compared on,
    as a word and in words. shapes: of the images. tolerance: the largest `difference` allowed. matched: the least
    share of a detector's objects that both find. difference: the largest of all outputs. objects: that a detector
    found. outputs: of each output. equal: shares of equal predictions, "top-1", "pixels" or "detections". scores:
    by name; {} where no labels are there, and `unscored` says why. scored: images they are of.
    speed: None where it was not measured. recorded: None where there is nothing to compare with elsewhere.
    quantized: of a file in 8 bits. image_folder: the folder of the images, "" where they are of none. notes: further
    lines.
    """

    target: str
    precision: str
    model: str
    task: str
    files: Mapping[str, str]
    weights: str
    weights_source: str
    versions: Mapping[str, str]
    processor: str
    threads: int
    image_source: Source
    images: str
    shapes: tuple[tuple[int, ...], ...]
    tolerance: float
    difference: float
    matched: float = 1.0
    objects: int | None = None
    outputs: tuple[OutputDifference, ...] = ()
    equal: Mapping[str, float] = field(default_factory=dict)
    scores: Mapping[str, Score] = field(default_factory=dict)
    scored: int = 0
    unscored: str = ""
    speed: Speed | None = None
    recorded: Recorded | None = None
    quantized: Quantized | None = None
    image_folder: str = ""
    notes: tuple[str, ...] = ()
    weights_order: str = ORDER
    format: int = FORMAT

    def to_json(self) -> str:
        """As text; numbers are finite."""
        return json.dumps(asdict(self), indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read `to_json`; something else raises some ValueError, TypeError, KeyError or AttributeError."""
        table = {**ADDED, **json.loads(text)}
        if table["format"] != FORMAT or set(table) != {f.name for f in fields(cls)}:
            raise ValueError("other fields")
        for name in ("files", "versions", "equal", "scores"):
            if not isinstance(table[name], dict):
                raise TypeError(name)
        table["shapes"] = tuple(tuple(shape) for shape in table["shapes"])
        table["outputs"] = tuple(OutputDifference(**row) for row in table["outputs"])
        table["scores"] = {name: Score(**row) for name, row in table["scores"].items()}
        table["notes"] = tuple(table["notes"])
        if table["speed"] is not None:
            table["speed"] = Speed(tuple(table["speed"].pop("shape")), **table["speed"])
        if table["recorded"] is not None:
            row = table["recorded"]
            shape, mean, std = (tuple(row[name]) for name in ("shape", "mean", "std"))
            table["recorded"] = Recorded(shape, mean, std, row["values"])
        if table["quantized"] is not None:
            row = table["quantized"]
            timed = row.pop("timed")
            table["quantized"] = Quantized(**row, timed=Timed(**{**timed, "shape": tuple(timed["shape"])}))
        return cls(**table)

    def save(self, path: str | Path) -> None:
        """Write it, whole or not at all."""
        replace_file(Path(path), self.to_json().encode("ascii"))


def place_of(file: str | Path) -> Path:
    """Where the certificate of an exported file lies: FILE.certificate.json."""
    file = Path(file)
    return file.with_name(file.name + ENDING)


def read_certificate(path: str | Path) -> Certificate:
    """The certificate in a file.

    Raises:
        ValueError: if there is none, or it is damaged or of another version.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"There is no certificate {path}: `tetravit export` writes it beside the file.")
    try:
        text = path.read_text(encoding="utf-8")
        number = json.loads(text).get("format")
        if number != FORMAT:
            raise ValueError(
                f"{path} has format {number!r}; this version of tetravit reads certificates of format {FORMAT}."
            )
    except (UnicodeDecodeError, json.JSONDecodeError, AttributeError):
        raise ValueError(f"{path} is no certificate, or damaged.") from None
    try:
        return Certificate.from_json(text)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ValueError(f"{path} is no certificate, or damaged.") from None


def sha256_of(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_digest(model: nn.Module) -> str:
    """SHA-256 over the tensors of a model, in the order of their names; see `ORDER`."""
    return fingerprint(
        digests({name: x.detach().cpu().contiguous() for name, x in model.state_dict().items()})
    )


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """Versions of Python, tetravit, torch and further distributions that are installed."""
    versions = {"python": platform.python_version(), "tetravit": package_version()}
    for name in ("torch", *packages):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
