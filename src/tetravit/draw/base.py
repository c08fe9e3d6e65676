"""Shared by all pictures: sizes, colours, the font, file names."""

import importlib.util
import itertools
from functools import cache
from pathlib import Path

from PIL import Image, ImageFont

WIDTH = 480  # pixels; minimum width
LARGEST = 1280  # pixels; maximum width
TALLEST = 2560  # pixels; maximum height, regardless of the width
INK, SOFT, PAPER, BAR, TRACK = "#14181f", "#5b6472", "#ffffff", "#2563c9", "#e3e6eb"


@cache
def sans(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """DejaVu Sans from matplotlib: Latin, Greek, Cyrillic, Arabic, Hebrew, Georgian and more."""
    spec = importlib.util.find_spec("matplotlib")  # only locates matplotlib, without importing it
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        file = Path(folder) / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        if file.is_file():
            return ImageFont.truetype(str(file), size)
    return ImageFont.load_default(size)


def fitted(picture: Image.Image) -> Image.Image:
    """A picture resized for viewing; tiny ones are enlarged with nearest neighbour."""
    factor = min(max(picture.width, WIDTH), LARGEST) / picture.width
    factor = min(factor, TALLEST / picture.height)
    if factor == 1:
        return picture
    width, height = (max(1, round(side * factor)) for side in picture.size)
    square = factor > 1 and picture.width <= WIDTH // 4
    return picture.resize((width, height), Image.Resampling.NEAREST if square else Image.Resampling.LANCZOS)


def shortened(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, room: float) -> str:
    """The text, truncated with an ellipsis if it is wider than `room` pixels."""
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(f"{text}...") > room:
        text = text[:-1]
    return f"{text}..."


def free_name(folder: Path, image: Path, taken: set[Path]) -> Path:
    """Output file of an image: its own name as PNG, with a number for repeated names."""
    names = (f"{image.stem}{f'-{i}' if i > 1 else ''}.png" for i in itertools.count(1))
    path = next(folder / name for name in names if folder / name not in taken)
    taken.add(path)
    return path
