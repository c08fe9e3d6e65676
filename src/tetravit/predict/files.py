"""Which image files are meant."""

import glob
from collections.abc import Sequence
from pathlib import Path

_ENDINGS = "jpg jpeg jpe png webp bmp gif tif tiff ppm pgm jp2 tga avif mpo"
SUFFIXES = {f".{ending}" for ending in _ENDINGS.split()}


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
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
            if not inside:
                raise ValueError(f"There are no images in the folder {str(place)!r}.")
            found += inside
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
