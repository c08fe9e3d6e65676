"""Draw objects: boxes, masks, names."""

from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from tetravit.draw.base import INK, PAPER, fitted, sans

Colour = tuple[int, int, int]
OPAQUE = 0.45  # opacity of masks


def outlined(
    image: Tensor,
    boxes: Sequence[Sequence[float]],
    captions: Sequence[str],
    colours: Sequence[Colour],
    masks: Iterable[tuple[int, np.ndarray] | None] = (),
) -> Image.Image:
    """Draw objects on an image, resized for viewing.

    Args:
        image: uint8 (3, Hi, Wi).
        boxes: x1 y1 x2 y2 in pixels of the image.
        captions, colours: one per box; empty captions are omitted.
        masks: per box a first column and bool (Hi, w) from there; consumed one at a time.
    """
    pixels = image.permute(1, 2, 0).cpu().numpy().copy()
    for mask, colour in zip(masks, colours, strict=False):
        if mask is not None:
            start, inside = mask
            place = pixels[:, start : start + inside.shape[1]]
            part = place[inside].astype(np.float32)
            place[inside] = np.rint(part + OPAQUE * (np.asarray(colour, np.float32) - part)).astype(np.uint8)
    picture = fitted(Image.fromarray(pixels))
    scale = picture.width / pixels.shape[1], picture.height / pixels.shape[0]
    draw = ImageDraw.Draw(picture)
    font = sans(max(12, picture.width // 40))
    width = max(2, picture.width // 240)
    placed = [[scale[i % 2] * value for i, value in enumerate(box)] for box in boxes]
    for box, colour in zip(placed, colours, strict=True):
        draw.rectangle(
            (box[0], box[1], max(box[0], box[2]), max(box[1], box[3])), outline=colour, width=width
        )
    for box, caption, colour in zip(placed, captions, colours, strict=True):
        if caption:
            _tag(draw, (box[0], box[1]), caption, colour, font, picture.size)
    return picture


def _tag(
    draw: ImageDraw.ImageDraw,
    corner: tuple[float, float],
    text: str,
    colour: Colour,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    size: tuple[int, int],
) -> None:
    """Draw a caption on a coloured background: above the corner if there is room, never outside the picture."""
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    wide, high = right - left + 8, bottom - top + 6
    x = min(max(0.0, corner[0]), max(0.0, size[0] - wide))
    y = corner[1] - high if corner[1] >= high else min(corner[1], size[1] - high)
    draw.rectangle((x, y, x + wide, y + high), fill=colour)
    dark = 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2] > 140
    draw.text((x + 4 - left, y + 3 - top), text, INK if dark else PAPER, font)
