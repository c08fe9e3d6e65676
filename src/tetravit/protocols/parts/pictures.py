"""Image folders and preprocessing of protocols with their own data."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from tetravit.data.decode import decode, file_bytes
from tetravit.data.transforms.base import to_pillow
from tetravit.protocols.base import ProtocolConfig
from tetravit.structures import IMAGENET_MEAN, IMAGENET_STD

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


class RootConfig(ProtocolConfig):
    """The `[evaluate]` section of a protocol with its own images."""

    root: str = Field(default="", description="Folder of the protocol's images.")


def folder(config: RootConfig, *inside: str) -> Path:
    """The root, or a folder inside it.

    Raises:
        ValueError: if it is not set, or does not exist.
    """
    if not config.root:
        raise ValueError(f"The protocol {config.protocol!r} has images of its own: set evaluate.root.")
    path = Path(config.root, *inside)
    if not path.is_dir():
        raise ValueError(f"{path} is not there, which the protocol {config.protocol!r} reads.")
    return path


def listed(path: Path) -> list[Path]:
    """The images in a folder and its subfolders, by name."""
    return sorted(p for p in path.rglob("*") if p.suffix.lower() in ENDINGS and p.is_file())


def picture(path: Path) -> Image.Image:
    """An RGB image, upright by its EXIF orientation."""
    return to_pillow(decode(file_bytes(path), name=str(path)))


def normalised(
    image: Image.Image, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
) -> Tensor:
    """A Pillow image -> float32 (1, 3, h, w)."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    centre, width = (torch.tensor(tuple(x)).view(3, 1, 1) for x in (mean, std))
    return ((pixels - centre) / width)[None]
