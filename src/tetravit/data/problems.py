"""Counts of what a data set leaves out, by cause."""

from dataclasses import dataclass, field


@dataclass
class Problems:
    """Counts of images and objects left out, by cause, with the first case of each."""

    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, cause: str, where: str) -> None:
        self.counts[cause] = self.counts.get(cause, 0) + 1
        self.first.setdefault(cause, where)

    def merge(self, other: "Problems") -> None:
        for cause, count in other.counts.items():
            self.counts[cause] = self.counts.get(cause, 0) + count
            self.first.setdefault(cause, other.first[cause])

    def lines(self) -> list[str]:
        """One line per cause, in order of first occurrence."""
        return [f"{count:,} {cause}; the first: {self.first[cause]}" for cause, count in self.counts.items()]
