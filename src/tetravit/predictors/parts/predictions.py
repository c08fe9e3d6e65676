"""The contract of a prediction, and reading its images."""

import base64
import html
import io
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from PIL.Image import Image
from torch import Tensor

from tetravit.data.decode import BadImage, decode

Read = TypeVar("Read")
SHOWN = 24  # pictures that a notebook displays


@dataclass(frozen=True)
class Frame:
    """An image in memory: a frame of a video, or an object in Python.

    pixels: uint8 (3, Hi, Wi). place: origin, in addition to its name: {"frame": 12, "time_s": 0.4}.
    """

    name: str
    pixels: Tensor = field(repr=False)
    place: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.name}#{self.place['frame']}" if "frame" in self.place else self.name


@dataclass(frozen=True)
class Prepared:
    """An image preprocessed by `model.preprocess`.

    tensor: float (C, h, w). size: height and width before preprocessing.
    """

    name: str
    tensor: Tensor = field(repr=False)
    size: tuple[int, int]

    def __str__(self) -> str:
        return self.name


Source = Path | Frame | Prepared


def pixels_of(source: Source) -> Tensor:
    """The image uint8 (3, Hi, Wi).

    Raises:
        BadImage: for an unreadable file, or a preprocessed image, whose pixels are not available.
    """
    if isinstance(source, Prepared):
        raise BadImage(source.name, "it is prepared for the model; its pixels are not kept")
    return source.pixels if isinstance(source, Frame) else decode(source, layout="decoded")


@dataclass(frozen=True)
class Prediction:
    """The prediction for one image, or the reading error. A notebook displays it as a picture."""

    image: Source
    error: str | None = None

    def cells(self) -> list[str]:
        """The cells of a table row, after the image name."""
        raise NotImplementedError

    def facts(self) -> dict[str, Any]:
        """The prediction as plain data, after the image name."""
        raise NotImplementedError

    def hint(self) -> str:
        """A suggested option if the image was strongly downscaled; else empty."""
        return ""

    def picture(self, pixels: Tensor) -> Image:
        """The image uint8 (3, Hi, Wi) with the prediction drawn into it."""
        raise NotImplementedError

    def draw(self) -> Image:
        """The image with the prediction drawn on it.

        Raises:
            BadImage: if the image cannot be read.
        """
        return self.picture(pixels_of(self.image))

    def to_dict(self) -> dict[str, Any]:
        """The prediction as JSON-ready data, as printed by `tetravit predict --json`."""
        place = {"image": str(self.image)}
        if isinstance(self.image, Frame):
            place = {"image": self.image.name, **self.image.place}
        return place | ({"error": self.error} if self.error is not None else self.facts())

    def _repr_png_(self) -> bytes | None:
        return None if self.error is not None else _png(self.draw())


class Predictions(list[Prediction]):
    """A list of predictions, in the order of the images. A notebook displays the first ones as pictures."""

    def to_dict(self) -> list[dict[str, Any]]:
        """Each as plain data."""
        return [prediction.to_dict() for prediction in self]

    def draw(self) -> list[Image]:
        """Pictures of the predictions of readable images."""
        return [prediction.draw() for prediction in self if prediction.error is None]

    def _repr_html_(self) -> str:
        parts = [_figure(prediction) for prediction in self[:SHOWN]]
        if len(self) > SHOWN:
            parts.append(f"<div>and {len(self) - SHOWN} more</div>")
        return "".join(parts)


def _figure(prediction: Prediction) -> str:
    """A picture of a page, or the reason why there is none."""
    name = html.escape(str(prediction.image))
    if prediction.error is not None:
        return f"<div>{name}: {html.escape(prediction.error)}</div>"
    data = base64.b64encode(_png(prediction.draw())).decode()
    return f'<img title="{name}" style="max-width:20em;margin:2px" src="data:image/png;base64,{data}">'


def check_count(name: str, value: int) -> None:
    """Raises: ValueError if `value` is below 1."""
    if value < 1:
        raise ValueError(f"{name} is 1 or more; got {value}.")


def in_chunks(
    images: Iterable[Source], size: int, read: Callable[[Source], Read], threads: int = 2
) -> Iterator[tuple[Sequence[Source], Sequence[Read | BadImage]]]:
    """Batches of up to `size` images with the result of `read` for each, or its error."""

    def attempt(image: Source) -> Read | BadImage:
        try:
            return read(image)
        except BadImage as error:
            return error

    pending = iter(images)
    with ThreadPoolExecutor(threads) as pool:
        while chunk := list(itertools.islice(pending, size)):
            yield chunk, list(pool.map(attempt, chunk))


def _png(picture: Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "png")
    return buffer.getvalue()
