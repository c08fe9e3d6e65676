"""The findings of a data check, with counts and places."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

Level = Literal["error", "note"]
PLACES = 20  # kept per finding

# name of a finding: its level and title. An error loses data or distorts a score.
KINDS: dict[str, tuple[Level, str]] = {
    "unreadable": ("error", "images that cannot be read"),
    "truncated": ("error", "images that break off"),
    "changed": ("error", "images of shards that cannot be read, or whose bytes have changed"),
    "crash": ("error", "images that end the process that decodes them"),
    "foreign": ("error", "files that are not read as images"),
    "folder": ("error", "folders named like images"),
    "refused": ("error", "parts that the loader refuses"),
    "labels": ("error", "annotations or images that the loader leaves out"),
    "values": ("error", "label maps with values without a class"),
    "size": ("error", "label maps of another size than their image"),
    "empty_class": ("error", "classes without images"),
    "leak": ("error", "training images that are also in another part"),
    "near_leak": ("note", "near duplicates of training images in another part"),
    "duplicate": ("note", "exact duplicates within a part"),
    "near_duplicate": ("note", "near duplicates within a part"),
    "wrong_ending": ("note", "images whose ending names another format"),
    "deep": ("note", "images with more than 8 bits per channel; they are scaled to 8"),
    "turned": ("note", "images that EXIF turns; they are read upright"),
    "cmyk": ("note", "CMYK images; they are converted without their colour profile"),
    "animated": ("note", "images of several frames or pages; the first is read"),
    "tiny": ("note", "images with a side under 32 pixels"),
    "huge": ("note", "images of more than 25 million pixels, slow to decode"),
}


@dataclass
class Finding:
    """One kind of finding. places: the first ones: a path and a detail."""

    name: str
    count: int = 0
    places: list[tuple[str, str]] = field(default_factory=list)

    @property
    def level(self) -> Level:
        return KINDS[self.name][0]

    @property
    def title(self) -> str:
        return KINDS[self.name][1]

    def add(self, place: str, detail: str = "", count: int = 1) -> None:
        self.count += count
        if len(self.places) < PLACES:
            self.places.append((place, detail))

    def line(self) -> str:
        """The finding and its first place, in one line."""
        place, detail = self.places[0]
        return f"{self.count:,} {self.title}; the first: {place}{f' ({detail})' if detail else ''}"

    def row(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "name": self.name,
            "level": self.level,
            "title": self.title,
            "count": self.count,
            "first": [{"place": place, "detail": detail} for place, detail in self.places],
        }


class Findings:
    """Findings by name, in the order of `KINDS`."""

    def __init__(self) -> None:
        self._by_name: dict[str, Finding] = {}

    def add(self, name: str, place: str, detail: str = "", count: int = 1) -> None:
        self._by_name.setdefault(name, Finding(name)).add(place, detail, count)

    def all(self) -> list[Finding]:
        return [self._by_name[name] for name in KINDS if name in self._by_name]

    def errors(self) -> Iterable[Finding]:
        return (finding for finding in self.all() if finding.level == "error")
