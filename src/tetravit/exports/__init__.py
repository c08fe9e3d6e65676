"""A model to another format, verified against the model; one target per file."""

from collections.abc import Mapping

from tetravit.exports.base import DTYPES, Target
from tetravit.registry import discover

TARGETS: Mapping[str, Target] = discover(__name__, "TARGETS")

from tetravit.exports.export import Exported, Model, export, place  # noqa: E402  needs the menu
from tetravit.exports.parts.certificate import Certificate, read_certificate  # noqa: E402
from tetravit.exports.parts.opening import is_exported, load_program  # noqa: E402
from tetravit.exports.verify import Verified, verify_export  # noqa: E402

__all__ = [
    "DTYPES",
    "TARGETS",
    "Certificate",
    "Exported",
    "Model",
    "Target",
    "Verified",
    "export",
    "is_exported",
    "load_program",
    "place",
    "read_certificate",
    "verify_export",
]
