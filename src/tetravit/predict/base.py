"""What every kind of answer offers, and how files become answers."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from PIL.Image import Image
from torch import Tensor

from tetravit.data.decode import BadImage

Read = TypeVar("Read")


@dataclass(frozen=True)
class Prediction:
    """What a model says about one image, or why the image cannot be read."""

    image: Path
    error: str | None = None

    def cells(self) -> list[str]:
        """The row of a table, after the name of the image."""
        raise NotImplementedError

    def facts(self) -> dict[str, Any]:
        """The same as plain data, after the name of the image."""
        raise NotImplementedError

    def hint(self) -> str:
        """What else to ask, where the model was shown much less than there is; empty: nothing."""
        return ""

    def picture(self, pixels: Tensor) -> Image:
        """The image uint8 (3, Hi, Wi) with the answer in it."""
        raise NotImplementedError


def check_count(name: str, value: int) -> None:
    """Raises: ValueError if `value` is below 1."""
    if value < 1:
        raise ValueError(f"{name} is 1 or more; got {value}.")


def in_chunks(
    files: Iterable[Path], size: int, read: Callable[[Path], Read], threads: int = 2
) -> Iterator[tuple[Sequence[Path], Sequence[Read | BadImage]]]:
    """Up to `size` files at a time with what `read` makes of each, or why it cannot."""

    def attempt(file: Path) -> Read | BadImage:
        try:
            return read(file)
        except BadImage as error:
            return error

    pending = iter(files)
    with ThreadPoolExecutor(threads) as pool:
        while chunk := list(itertools.islice(pending, size)):
            yield chunk, list(pool.map(attempt, chunk))
