"""Experiment trackers for the scalars, pictures and weights of a run; one per file."""

import base64
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tetravit.files import read_json
from tetravit.registry import discover, pick
from tetravit.trackers.base import IDENTITIES, RunInfo, Tracker, Tracking

TRACKERS: dict[str, type[Tracker]] = discover(__name__, "TRACKERS")
ALWAYS = "csv"
MOST_PICTURES = 16


def check_trackers(names: Sequence[str]) -> tuple[str, ...]:
    """The names without duplicates, after checking that each is usable.

    Raises:
        ValueError: for an unknown tracker, or one whose package is not installed.
    """
    for name in names:
        row = pick(TRACKERS, name, "tracker")
        if row.package and find_spec(row.package) is None:
            raise ValueError(f"The tracker {name!r} needs the extra: pip install 'tetravit[{row.extra}]'.")
    return tuple(dict.fromkeys(names))


def trackers_of(folder: Path) -> tuple[str, ...]:
    """The trackers of the run in `folder`, by name."""
    return tuple(name for name in read_json(folder / IDENTITIES) if name in TRACKERS)


def tracking_reporters(names: Sequence[str], run: RunInfo, warn: Callable[[str], None]) -> list[Tracking]:
    """A reporter for each tracker, and one for metrics.csv."""
    every = dict.fromkeys([ALWAYS, *names])
    return [Tracking(name, TRACKERS[name](), run, warn, pictures=report_pictures) for name in every]


def report_pictures(folder: Path) -> dict[str, bytes]:
    """The first pictures inside report.html of a run, "report/NUMBER" -> a PNG or JPEG file as bytes."""
    path = folder / "report.html"
    if not path.is_file():
        return {}
    parser = _Pictures()
    parser.feed(path.read_text(encoding="utf-8"))
    return {f"report/{i:02d}": data for i, data in enumerate(parser.pictures[:MOST_PICTURES], 1)}


class _Pictures(HTMLParser):
    """Collects the embedded pictures of a page."""

    STARTS = ("data:image/png;base64,", "data:image/jpeg;base64,")

    def __init__(self) -> None:
        super().__init__()
        self.pictures: list[bytes] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        source: Any = dict(attrs).get("src") or ""
        if tag == "img" and source.startswith(self.STARTS):
            self.pictures.append(base64.b64decode(source.partition(",")[2]))


__all__ = [
    "TRACKERS",
    "RunInfo",
    "Tracker",
    "Tracking",
    "check_trackers",
    "report_pictures",
    "trackers_of",
    "tracking_reporters",
]
