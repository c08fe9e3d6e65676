"""Input images: by path or pattern, or as Python objects."""

import glob
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tetravit.data.files import UNREAD, images_below
from tetravit.data.preprocess import pixels
from tetravit.data.problems import Problems
from tetravit.data.text import read_text
from tetravit.predictors.parts.predictions import Frame, Source
from tetravit.predictors.parts.video import expanded, is_video

LOG = logging.getLogger("tetravit.data")
LISTS = (".txt", ".lst")  # files of paths, one per line


def gathered(images: Any) -> tuple[list[Source], bool]:
    """Images as sources, and whether a single image (not a list) was given.

    Args:
        images: a path, a pattern, a video, a Pillow image, an array, a tensor, or a list of them.

    Raises:
        ValueError: if nothing exists at a path, or an object is not an image.
    """
    several = isinstance(images, (list, tuple)) or getattr(images, "ndim", 3) == 4
    sources: list[Source] = []
    for i, image in enumerate(images if several else [images]):
        if isinstance(image, (str, Path)):
            sources += expanded(find_images([image]))
        else:
            sources.append(Frame(f"image {i}" if several else "image", _bytes(pixels(image))))
    return sources, not several and len(sources) == 1 and not _holds_several(images)


def _bytes(image: Tensor) -> Tensor:
    return image if image.dtype == torch.uint8 else (255 * image).round().clamp(0, 255).to(torch.uint8)


def _holds_several(images: Any) -> bool:
    """Whether a name is a folder, a pattern, a list or a video."""
    if not isinstance(images, (str, Path)):
        return False
    path = Path(os.path.expanduser(images))
    return not path.is_file() or path.suffix.lower() in LISTS or is_video(path)


def find_images(places: Sequence[str | Path]) -> list[Path]:
    """Files, folders (recursive), shell patterns and lists -> files, in order, without duplicates.

    A file given by name is used whatever its extension, videos included; in folders, files with an image extension
    are used. A list is a .txt or .lst file with one path per line, relative to its own folder or to the working
    folder; "-" is a list on standard input.

    Raises:
        ValueError: if nothing exists at a path.
    """
    paths: list[Path] = []
    for place in places:
        path = Path(os.path.expanduser(place))
        if str(place) == "-":
            paths += _listed(sys.stdin.read(), "standard input", Path())
        elif path.is_dir():
            others = Problems()
            inside = images_below(str(path), others)
            if not inside:
                lines = f": {'; '.join(others.lines())}" if others.counts else ""
                raise ValueError(f"There are no images in the folder {str(place)!r}{lines}.")
            for line in others.lines():
                if UNREAD in line:  # of images, not of texts beside them
                    LOG.warning("%s: %s.", place, line)
            paths += sorted(path / name for name in inside)
        elif path.is_file() and path.suffix.lower() in LISTS:
            paths += _listed(read_text(path), str(path), path.parent)
        elif path.is_file():
            paths.append(path)
        elif glob.has_magic(str(place)):
            matches = sorted(Path(p) for p in glob.glob(str(path), recursive=True))
            files = [p for p in matches if p.is_file()]
            if not files:
                raise ValueError(f"No image matches {str(place)!r}.")
            paths += files
        else:
            raise ValueError(f"There is no image or folder {str(place)!r}.")
    return list(dict.fromkeys(paths))


def _listed(text: str, name: str, folder: Path) -> list[Path]:
    """The files of a list.

    Raises:
        ValueError: for a line that is not a file, or an empty list.
    """
    files = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip() and not line.startswith("#"):
            names = dict.fromkeys(
                (line.strip(), line.strip().replace("\\", "/"))
            )  # Windows writes backslashes
            path = next((p for n in names for p in (folder / n, Path(n)) if p.is_file()), None)
            if path is None:
                raise ValueError(f"{name}, line {number}: there is no image {line.strip()!r}.")
            files.append(path)
    if not files:
        raise ValueError(f"{name} lists no images.")
    return files
