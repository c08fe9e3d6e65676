"""The parts of a report that depend on the kind of model."""

from collections.abc import Callable
from typing import NamedTuple

from tetravit.report.html import Tile
from tetravit.report.run import Run


class Kind(NamedTuple):
    """Functions that build parts of the report; parts without data are omitted.

    title: of `command`. tiles: key figures at the top, the score first. charts: cards of curves, beside those of
    loss, learning rate and speed. sections: cards in the middle of the page. command: of `tetravit`, for one's own
    images; {run} is the run folder.
    """

    title: str
    tiles: Callable[[Run], list[Tile]]
    charts: Callable[[Run], list[str]]
    sections: Callable[[Run], list[str]]
    command: str = "predict {run} IMAGE_OR_FOLDER"
