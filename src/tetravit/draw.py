"""Pictures with what a model says about them."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

WIDTH = 480  # pixels; narrower images are enlarged to it
LARGEST = 1280  # pixels; wider images are shrunk to it
INK, SOFT, PAPER, BAR, TRACK = "#14181f", "#5b6472", "#ffffff", "#2563c9", "#e3e6eb"


def labelled(image: Tensor, guesses: Sequence[tuple[str, float]]) -> Image.Image:
    """An image with a bar per class below it, the likeliest first.

    Args:
        image: uint8 (3, Hi, Wi).
        guesses: name and probability in 0..1.
    """
    picture = fitted(Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()))
    width, unit = picture.width, max(16, picture.width // 26)
    font = ImageFont.load_default(unit)
    line, margin = round(unit * 2.3), unit
    canvas = Image.new("RGB", (width, picture.height + line * len(guesses) + margin), PAPER)
    canvas.paste(picture, (0, 0))
    draw = ImageDraw.Draw(canvas)
    for i, (name, score) in enumerate(guesses):
        top = picture.height + margin // 2 + i * line
        share = f"{100 * score:.1f} %"
        room = width - 3 * margin - draw.textlength(share, font)
        draw.text((margin, top), shortened(name, font, room), INK if i == 0 else SOFT, font)
        draw.text((width - margin, top), share, INK if i == 0 else SOFT, font, anchor="ra")
        bottom = top + round(unit * 1.45)
        draw.rounded_rectangle((margin, bottom, width - margin, bottom + unit // 4), unit // 8, TRACK)
        end = margin + round((width - 2 * margin) * score)
        if end > margin + unit // 4:
            draw.rounded_rectangle((margin, bottom, end, bottom + unit // 4), unit // 8, BAR)
    return canvas


def fitted(picture: Image.Image) -> Image.Image:
    """A picture at a width that can be looked at; tiny ones keep their square pixels."""
    width = min(max(picture.width, WIDTH), LARGEST)
    if picture.width == width:
        return picture
    height = max(1, round(picture.height * width / picture.width))
    kind = Image.Resampling.NEAREST if picture.width <= WIDTH // 4 else Image.Resampling.LANCZOS
    return picture.resize((width, height), kind)


def shortened(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, room: float) -> str:
    """The text, or its beginning and three points where it is wider than `room` pixels."""
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(f"{text}...") > room:
        text = text[:-1]
    return f"{text}..."


def free_name(folder: Path, image: Path, taken: set[Path]) -> Path:
    """Where to draw an image: its own name as PNG, with a number where two images share it."""
    names = (f"{image.stem}.png", *(f"{image.stem}-{i}.png" for i in range(2, 10**6)))
    path = next(folder / name for name in names if folder / name not in taken)
    taken.add(path)
    return path
