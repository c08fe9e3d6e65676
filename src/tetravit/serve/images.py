"""The body of a request -> what a model takes; whatever is too large or no image is refused.

Nothing is decoded before the header of the image has been checked. No address is fetched and no path is opened.
"""

from torch import Tensor

from tetravit.data.decode import BadImage, TooManyPixels, decode, opened
from tetravit.data.preprocess import preprocess, resized
from tetravit.predictors.parts.predictions import Prepared
from tetravit.serve.limits import Limits, Refused
from tetravit.structures import Preprocess

NAME = "image"


def pixels_of(data: bytes, limits: Limits, channels: int = 3) -> Tensor:
    """The image of a body, upright: uint8 (channels, Hi, Wi).

    Raises:
        Refused: 400 for an empty body, 413 for too many pixels (seen in the header), 422 for what cannot be read.
    """
    if not data:
        raise Refused(400, "The body is empty; it is the image itself: curl --data-binary @FILE.")
    try:
        if not data.startswith(b"\x93NUMPY"):
            with opened(data, NAME) as image:
                width, height = image.size
            _check(height, width, limits, "The image has")
        pixels = decode(data, name=NAME, layout="decoded", channels=channels)
    except TooManyPixels as error:
        raise Refused(413, f"The image is too large: {error.cause}.") from None
    except BadImage as error:
        raise Refused(422, f"The image cannot be read: {error.cause}.") from None
    _check(pixels.shape[1], pixels.shape[2], limits, "The image has")
    return pixels


def prepared(pixels: Tensor, expected: Preprocess, limits: Limits) -> Prepared:
    """An image as a model takes it.

    Raises:
        Refused: 413 for one so long and narrow that it has too many pixels once it is resized.
    """
    size = (pixels.shape[1], pixels.shape[2])
    _check(*resized(size, expected), limits, f"The image of {size[1]} x {size[0]} pixels would be resized to")
    try:
        return Prepared(NAME, preprocess(pixels, expected), size)
    except BadImage as error:
        raise Refused(422, f"The image cannot be read: {error.cause}.") from None


def _check(height: int, width: int, limits: Limits, what: str) -> None:
    if height * width > limits.pixels:
        raise Refused(
            413,
            f"{what} {width} x {height} pixels; the limit is {limits.megapixels:g} million (--max-megapixels).",
        )
