"""Export a model to another format, verified against the model; one target per file."""

from collections.abc import Mapping

from tetravit.exports.base import DTYPES, Folder, Target
from tetravit.registry import discover

TARGETS: Mapping[str, Target] = discover(__name__, "TARGETS")
FOLDERS: Mapping[str, Folder] = discover(__name__, "FOLDERS")

from tetravit.exports.export import Exported, Model, export, place  # noqa: E402  needs the menus
from tetravit.exports.parts.around import check_folder  # noqa: E402
from tetravit.exports.parts.certificate import Certificate, read_certificate  # noqa: E402
from tetravit.exports.parts.opening import is_exported, load_program  # noqa: E402
from tetravit.exports.verify import Verified, verify_export  # noqa: E402

__all__ = [
    "DTYPES",
    "FOLDERS",
    "TARGETS",
    "Certificate",
    "Exported",
    "Folder",
    "Model",
    "Target",
    "Verified",
    "check_folder",
    "export",
    "is_exported",
    "load_program",
    "place",
    "read_certificate",
    "verify_export",
]
