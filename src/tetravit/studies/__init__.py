"""Tables and figures of the papers as commands. One question per file."""

from tetravit.registry import discover
from tetravit.studies.base import Study

STUDIES: dict[str, Study] = discover(__name__, "STUDIES")

__all__ = ["STUDIES", "Study"]
