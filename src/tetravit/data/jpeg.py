"""Select the fastest installed JPEG decoder whose pixels equal Pillow's.

Order of preference: simplejpeg (extra `fast`), torchcodec (needs no FFmpeg for images), then torchvision's, which is
deprecated in favour of torchcodec. Pillow is the reference: a decoder that differs by more than `BOUND` levels on a
few small images is not used, and Pillow decodes what a decoder rejects. TETRAVIT_DECODER sets one decoder, or pillow.
"""

import importlib
import io
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tetravit.kernels.vision import decode_jpeg

LOG = logging.getLogger("tetravit.data")
BOUND = 1  # levels of 255
SAVED: tuple[dict[str, int | bool], ...] = (
    {"quality": 95, "subsampling": 0},
    {"quality": 75, "subsampling": 2},
    {"quality": 85, "subsampling": 1, "progressive": True},
)  # encoder settings of the comparison images


@dataclass(frozen=True)
class Decoder:
    """A JPEG decoder.

    pixels: bytes -> RGB uint8 (3, H, W); ValueError or RuntimeError for unsupported data. turns: the decoder applies
    the EXIF orientation; else pixels are as stored.
    """

    name: str
    pixels: Callable[[bytes], Tensor]
    turns: bool

    def decode(self, data: bytes) -> Tensor | None:
        """The pixels; None: unsupported data."""
        try:
            return self.pixels(data)
        except (ValueError, RuntimeError):
            return None


def _simplejpeg() -> Decoder:
    library = importlib.import_module("simplejpeg")

    def pixels(data: bytes) -> Tensor:
        array = library.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False, strict=True)
        return torch.from_numpy(array).permute(2, 0, 1)

    return Decoder("simplejpeg", pixels, turns=False)


def _torchcodec() -> Decoder:
    try:
        decode = importlib.import_module("torchcodec.decoders").decode_jpeg  # from 0.17 on
    except (AttributeError, OSError, RuntimeError) as error:  # built for another torch
        raise ImportError(str(error)) from None
    return Decoder("torchcodec", lambda data: decode(_bytes(data)), turns=True)


def _torchvision() -> Decoder:
    def pixels(data: bytes) -> Tensor:
        rgb = decode_jpeg(_bytes(data))
        if rgb is None:
            raise ImportError("this torchvision has no JPEG decoder")
        return rgb

    return Decoder("torchvision", pixels, turns=True)


DECODERS: dict[str, Callable[[], Decoder]] = {
    "simplejpeg": _simplejpeg,
    "torchcodec": _torchcodec,
    "torchvision": _torchvision,
}


def decoder() -> Decoder | None:
    """The selected decoder; None: Pillow.

    Raises:
        ValueError: if TETRAVIT_DECODER is unknown, or its decoder is not installed.
    """
    return _chosen(os.environ.get("TETRAVIT_DECODER", ""))


@cache
def _chosen(wanted: str) -> Decoder | None:
    if wanted == "pillow":
        return None
    if wanted and wanted not in DECODERS:
        raise ValueError(f"TETRAVIT_DECODER takes one of pillow, {', '.join(DECODERS)}; got {wanted!r}.")
    for name in [wanted] if wanted else DECODERS:
        try:
            candidate = DECODERS[name]()
            difference = largest_difference(candidate)
        except ImportError:
            if wanted:
                raise ValueError(
                    f"TETRAVIT_DECODER names {name}, which is not installed here: pip install {name}."
                ) from None
            continue
        if difference <= BOUND:
            return candidate
        LOG.warning(
            "JPEGs are not decoded by %s: its pixels differ from Pillow's by up to %d levels.",
            name,
            difference,
        )
    return None


def largest_difference(candidate: Decoder) -> int:
    """The largest pixel difference from Pillow, in levels, over a few small images."""
    differences = []
    y, x = np.mgrid[:45, :67].astype(np.float64)
    waves = [np.sin(x / 3 + y / 7) + np.cos(x * y / 90), np.sin(x / 11), np.cos(y / 2) * np.sin(x / 5)]
    picture = Image.fromarray((127 + 60 * np.stack(waves, axis=-1)).clip(0, 255).astype(np.uint8))
    for shown in (picture, picture.convert("L")):
        for options in SAVED:
            buffer = io.BytesIO()
            shown.save(buffer, "jpeg", **options)
            wanted = np.asarray(Image.open(buffer).convert("RGB")).astype(np.int16)
            pixels = candidate.decode(buffer.getvalue())
            if pixels is None or pixels.shape != (3, *wanted.shape[:2]):
                return 255
            differences.append(int(np.abs(pixels.permute(1, 2, 0).numpy() - wanted).max()))
    return max(differences)


def _bytes(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)
