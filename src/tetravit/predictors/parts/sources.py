"""Images by name, or as Python holds them."""

import glob
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tetravit.data.files import images_below
from tetravit.data.preprocess import pixels
from tetravit.data.problems import Problems
from tetravit.predictors.parts.answers import Frame, Source


def gathered(images: Any) -> tuple[list[Source], bool]:
    """Images as sources, and whether there is only one because only one was given.

    Args:
        images: a path, a pattern, a Pillow image, an array, a tensor, or a list of them.

    Raises:
        ValueError: for a place where there is nothing, or an object that is no image.
    """
    several = isinstance(images, (list, tuple)) or getattr(images, "ndim", 3) == 4
    sources: list[Source] = []
    for i, image in enumerate(images if several else [images]):
        if isinstance(image, (str, Path)):
            sources += find_images([image])
        else:
            sources.append(Frame(f"image {i}" if several else "image", _bytes(pixels(image))))
    return sources, not several and len(sources) == 1 and not _is_folder(images)


def _bytes(image: Tensor) -> Tensor:
    return image if image.dtype == torch.uint8 else (255 * image).round().clamp(0, 255).to(torch.uint8)


def _is_folder(images: Any) -> bool:
    return isinstance(images, (str, Path)) and not Path(images).is_file()


def find_images(places: Sequence[str | Path]) -> list[Path]:
    """Files, folders (searched to the bottom) and shell patterns -> files, in order, each once.

    A file that is named counts whatever its ending; in a folder those count that end like an image.

    Raises:
        ValueError: for a place where there is nothing.
    """
    found: list[Path] = []
    for place in places:
        path = Path(place)
        if path.is_dir():
            others = Problems()
            inside = images_below(str(path), others)
            if not inside:
                lines = f": {'; '.join(others.lines())}" if others.counts else ""
                raise ValueError(f"There are no images in the folder {str(place)!r}{lines}.")
            found += sorted(path / name for name in inside)
        elif path.is_file():
            found.append(path)
        elif glob.has_magic(str(place)):
            matches = sorted(Path(p) for p in glob.glob(str(place), recursive=True))
            files = [p for p in matches if p.is_file()]
            if not files:
                raise ValueError(f"No image matches {str(place)!r}.")
            found += files
        else:
            raise ValueError(f"There is no image or folder {str(place)!r}.")
    return list(dict.fromkeys(found))
