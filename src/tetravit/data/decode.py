"""Decode any common image format to upright RGB pixels of 8 bits, or raise an error of one line.

Common JPEGs are decoded by the fastest installed decoder (`jpeg.py`) that gives Pillow's pixels; Pillow decodes
everything else and is the fallback. torchvision's PNG decoder is not used: it crashes on damaged files (seen in
0.29), and is no faster.

Choices: transparency is composited over white; CMYK is converted without its colour profile, and profiles are
ignored, as in the training of every published model; of several pages or frames the first is used; 16-bit values are
scaled, not clipped; float pixels are in 0..1, or in 0..255 if they exceed 1.

Shapes: H, W pixels of the upright image.
"""

import importlib
import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from tetravit.data import jpeg
from tetravit.data.files import HAS_HEIF
from tetravit.data.storage import StorageError, storage_of, with_tries
from tetravit.data.upright import turned_map

MAX_PIXELS = 200_000_000  # more than the largest phone cameras
_FORMATS = (
    "JPEG",
    "MPO",
    "PNG",
    "GIF",
    "WEBP",
    "TIFF",
    "BMP",
    "PPM",
    "JPEG2000",
    "TGA",
    "AVIF",
)  # formats whose decoders run no external program
_MARKS = (b"Exif", b"eXIf", b"EXIF", b"exif", b"Orientation")  # of JPEG, PNG, WebP, PNG of old, XMP
_UINT16_STEP = 257  # 65535 / 255


class BadImage(ValueError):
    """An unreadable image: its `name` and the `cause`."""

    def __init__(self, name: str, cause: str) -> None:
        super().__init__(name, cause)
        self.name = name
        self.cause = cause

    def __str__(self) -> str:
        return f"Cannot read image {self.name!r}: {self.cause}."


class TooManyPixels(BadImage):
    """An image whose header declares more pixels than the limit."""


def decode(
    source: str | os.PathLike[str] | bytes,
    *,
    name: str | None = None,
    layout: Literal["contiguous", "decoded"] = "contiguous",
    channels: int = 3,
) -> Tensor:
    """Decode an image to uint8 (channels, H, W), upright by its EXIF orientation.

    Args:
        source: path of a file, or its bytes.
        name: used in messages; None: the path.
        channels: 3: RGB; 1: gray; else the bands of the file: of its pixels, of its pages if each is gray, or the
            channels of a NumPy array (.npy), uint8 (channels, H, W) or (H, W, channels).
        layout: `contiguous` (channels first in memory), or as `decoded` (channels last), which crops and resizes
            faster.

    Raises:
        BadImage: if the file cannot be read, is not an image, is truncated, exceeds `MAX_PIXELS` (checked in its
            header, before decoding), or has another number of bands.
    """
    data = source if isinstance(source, bytes) else file_bytes(source, name)
    name = name or ("(bytes)" if isinstance(source, bytes) else os.fspath(source))
    if not data:
        raise BadImage(name, "the file is empty")
    pixels = _decode(data, name) if channels == 3 else _with_bands(data, name, channels)
    return pixels.contiguous() if layout == "contiguous" else pixels


def file_bytes(file: str | os.PathLike[str], name: str | None = None) -> bytes:
    """The bytes of a file. name: used in messages; None: its path.

    Raises:
        BadImage: if the file does not exist, may not be read, or is empty.
        StorageError: if the storage fails after several attempts.
    """
    path = os.fspath(file)
    name = name or path
    try:
        data = with_tries(name, lambda: storage_of(path).read(path))
    except StorageError:
        raise
    except OSError as error:
        raise BadImage(name, (error.strerror or str(error)).lower()) from None
    if not data:
        raise BadImage(name, "the file is empty")
    return data


@contextmanager
def opened(data: bytes, name: str) -> Iterator[Image.Image]:
    """Context with Pillow's image of the bytes of a file; pixels are decoded on access.

    Raises:
        BadImage: for any error, including those inside the block.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings about metadata do not concern the pixels
            image: Image.Image = Image.open(io.BytesIO(data), formats=_formats())
            _check_pixels(*image.size, name)
            yield image
    except BadImage:
        raise
    except UnidentifiedImageError:
        raise BadImage(name, f"it is not an image (it begins with {data[:12]!r})") from None
    except Image.DecompressionBombError:
        raise TooManyPixels(name, f"it has more than {MAX_PIXELS // 10**6} million pixels") from None
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, ... for damaged files
        raise BadImage(name, (str(error) or type(error).__name__).rstrip(".")) from error


def orientation(data: bytes, name: str, header: int | None = None) -> int:
    """EXIF orientation of an image: 1 upright, 2 to 8 mirrored or rotated.

    Args:
        data: bytes of the file.
        name: of the image in messages.
        header: length in bytes of the header of a JPEG, if known.

    Raises:
        BadImage: if the data is not an image.
    """
    if header is None and data.startswith(b"\xff\xd8\xff"):
        header = _jpeg_header(data).end
    head = data[:header]
    if not any(mark in head for mark in _MARKS) and data[:2] not in (b"II", b"MM"):
        return 1  # no EXIF, XMP or TIFF data
    with opened(data, name) as image:
        tag = image.getexif().get(ExifTags.Base.Orientation)
    return tag if isinstance(tag, int) and 1 <= tag <= 8 else 1


def _decode(data: bytes, name: str) -> Tensor:
    if data.startswith(b"\xff\xd8\xff"):
        header = _jpeg_header(data)
        if header.frame:
            _check_pixels(header.width, header.height, name)
        if header.is_plain and (decoder := jpeg.decoder()) is not None:
            pixels = decoder.decode(data)
            if pixels is not None:
                turn = 1 if decoder.turns else orientation(data, name, header.end)
                if turn == 1:
                    return pixels
                return torch.from_numpy(turned_map(pixels.permute(1, 2, 0).numpy(), turn)).permute(2, 0, 1)
    return _with_pillow(data, name)


class _JpegHeader(NamedTuple):
    """Header of a JPEG. end: its length in bytes. frame: whether it has a frame header. is_plain: 8 bits, one or
    three channels."""

    end: int
    frame: bool = False
    height: int = 0
    width: int = 0
    is_plain: bool = False


def _jpeg_header(data: bytes) -> _JpegHeader:
    header, i = _JpegHeader(len(data)), 2
    while i + 4 <= len(data) and data[i] == 0xFF:
        marker = data[i + 1]
        if marker == 0xDA:  # start of scan
            return header._replace(end=i)
        if marker == 0xFF:  # padding
            i += 1
            continue
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:  # no payload
            i += 2
            continue
        if (
            0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and i + 10 <= len(data)
        ):  # start of frame
            height, width = (int.from_bytes(data[j : j + 2], "big") for j in (i + 5, i + 7))
            header = _JpegHeader(len(data), True, height, width, data[i + 4] == 8 and data[i + 9] in (1, 3))
        i += 2 + int.from_bytes(data[i + 2 : i + 4], "big")
    return header


def _with_pillow(data: bytes, name: str) -> Tensor:
    with opened(data, name) as image:
        image.load()
        array = to_rgb(ImageOps.exif_transpose(image))
    return torch.from_numpy(array).permute(2, 0, 1)


def _with_bands(data: bytes, name: str, channels: int) -> Tensor:
    """Gray, or the bands of a file, as uint8 (channels, H, W)."""
    if channels == 1:
        return to_channels(_decode(data, name), 1, name)
    if data.startswith(b"\x93NUMPY"):
        return _array(data, name, channels)
    with opened(data, name) as image:
        pages = getattr(image, "n_frames", 1)
        bands = [_page(image, page) for page in range(pages if pages == channels else 1)]
    array = np.concatenate(bands, axis=2)
    if array.shape[2] != channels:
        raise BadImage(name, f"it has {array.shape[2]} bands and {pages} pages; data.channels is {channels}")
    return torch.from_numpy(array).permute(2, 0, 1)


def _page(image: Image.Image, page: int) -> np.ndarray:
    """One page, upright: uint8 (H, W, bands)."""
    image.seek(page)
    image.load()
    array = np.asarray(ImageOps.exif_transpose(image))
    array = array if array.dtype == np.uint8 else _scaled(array)
    return array[..., None] if array.ndim == 2 else array


def _array(data: bytes, name: str, channels: int) -> Tensor:
    """Load a NumPy file; pickles are refused."""
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
        array = array if array.dtype == np.uint8 else _scaled(array)
    except (ValueError, OSError, EOFError) as error:
        raise BadImage(name, str(error).rstrip(".")) from None
    if array.ndim != 3 or channels not in (array.shape[0], array.shape[2]):
        raise BadImage(name, f"it is an array {array.shape}; data.channels is {channels}")
    tensor = torch.from_numpy(array)
    return tensor if len(tensor) == channels else tensor.permute(2, 0, 1)


def to_channels(image: Tensor, channels: int, name: str) -> Tensor:
    """RGB (3, H, W) -> gray (1, H, W) with Pillow's ITU-R 601 weights; gray -> RGB; otherwise unchanged.

    Raises:
        BadImage: if it has another number of channels.
    """
    if len(image) == channels:
        return image
    if (len(image), channels) == (1, 3):
        return image.expand(3, -1, -1)
    if (len(image), channels) == (3, 1):
        weights = torch.tensor((19595, 38470, 7471), dtype=torch.int32)[:, None, None]  # of 65536
        gray = (image.to(torch.int32) * weights).sum(0, keepdim=True) + 0x8000
        return (gray >> 16).to(torch.uint8)
    raise BadImage(name, f"it has {len(image)} channels; data.channels is {channels}")


@cache
def _formats() -> list[str]:
    """The formats of `_FORMATS` that the installed Pillow can decode."""
    Image.init()
    if HAS_HEIF:
        importlib.import_module("pillow_heif").register_heif_opener()
    return [name for name in (*_FORMATS, "HEIF") if name in Image.OPEN]


def _check_pixels(width: int, height: int, name: str) -> None:
    if width * height > MAX_PIXELS:
        raise TooManyPixels(name, f"{width} x {height} pixels are more than {MAX_PIXELS // 10**6} million")


def to_rgb(image: Image.Image) -> np.ndarray:
    """Pillow's image of any mode -> uint8 (H, W, 3): 16 bits are scaled, transparency is composited over white.

    Raises:
        ValueError: if gray values lie outside the range of their type.
    """
    if image.mode.startswith("I") or image.mode == "F":
        return np.repeat(_scaled(np.asarray(image))[..., None], 3, axis=2)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


def _scaled(values: np.ndarray) -> np.ndarray:
    """Grey values of 16 or 32 bits, or floats -> uint8.

    Raises:
        ValueError: if they lie outside the range of their type.
    """
    low, high = float(values.min()), float(values.max())
    if values.dtype.kind == "f":
        limit, scale = (1.0, 255.0) if high <= 1 else (255.0, 1.0)
    else:
        limit, scale = 65535.0, 1 / _UINT16_STEP
    if not (low >= 0 and high <= limit):  # false for NaN
        raise ValueError(f"its values run from {low:g} to {high:g}; 0 to {limit:g} can be read")
    return np.rint(values.astype(np.float32) * scale).astype(np.uint8)
