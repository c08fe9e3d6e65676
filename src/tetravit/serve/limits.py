"""What a request may cost, and how a refusal is said."""

from dataclasses import dataclass, field
from math import isfinite


@dataclass(frozen=True)
class Limits:
    """What a server accepts.

    body_mib: of a request. megapixels: of an image, before and after it is resized. queue: requests at once.
    deadline_s: from the first byte of a request to its response. max_batch: images per call of the model. wait_ms:
    how long a call waits for images of the same size that are being read.

    Raises:
        ValueError: for a number that is out of range.
    """

    body_mib: float = 20
    megapixels: float = 50
    queue: int = 64
    deadline_s: float = 30
    max_batch: int = 8
    wait_ms: float = 3

    def __post_init__(self) -> None:
        for name in ("queue", "max_batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is 1 or more; got {getattr(self, name)}.")
        for name in ("body_mib", "megapixels", "deadline_s"):
            value = getattr(self, name)
            if not (isfinite(value) and value > 0):
                raise ValueError(f"{name} is a number above 0; got {value:g}.")
        if not 0 <= self.wait_ms <= 1000:
            raise ValueError(f"wait_ms is 0 to 1000 milliseconds; got {self.wait_ms:g}.")

    @property
    def body(self) -> int:
        """Bytes of a request."""
        return int(self.body_mib * 2**20)

    @property
    def pixels(self) -> int:
        """Pixels of an image."""
        return int(self.megapixels * 10**6)


@dataclass
class Refused(Exception):
    """A request that gets no prediction: the status of HTTP, one line that says why, headers."""

    status: int
    text: str
    headers: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.text
