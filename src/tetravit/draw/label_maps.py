"""Draw segmentation maps over images, with a legend; and write label maps as files."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from tetravit.draw.base import INK, PAPER, SOFT, WIDTH, fitted, sans, shortened

IGNORE = 255  # label of ignored pixels, which are not coloured
OPAQUE = 0.55  # opacity of the colours
EDGE = 0.9  # opacity at class borders
LISTED = 16  # maximum number of classes in a legend, the largest first

Colour = tuple[int, int, int]


def painted(image: Tensor, labels: Tensor, palette: Sequence[Colour]) -> Image.Image:
    """Draw classes over a grey image, with stronger borders.

    Args:
        image: uint8 (3, Hi, Wi).
        labels: integers (Hi, Wi); labels without a colour in the palette keep the colours of the image.
        palette: one colour per class.
    """
    pixels = image.permute(1, 2, 0).cpu().numpy().astype(np.float32)  # (Hi, Wi, 3)
    numbers = labels.cpu().numpy()
    known = (numbers >= 0) & (numbers < len(palette))
    colours = np.asarray(palette, np.float32)[np.where(known, numbers, 0)]
    share = np.where(known, OPAQUE, 0.0)
    share[known & _borders(numbers)] = EDGE
    grey = np.where(known[..., None], pixels.mean(axis=2, keepdims=True), pixels)
    pixels = grey + share[..., None] * (colours - grey)
    return Image.fromarray(np.rint(pixels).astype(np.uint8))


def overlay(
    image: Tensor, labels: Tensor, class_names: Sequence[str], palette: Sequence[Colour]
) -> Image.Image:
    """`painted`, resized for viewing, with a legend below: classes and their shares of the picture.

    Args:
        image: uint8 (3, Hi, Wi).
        labels: integers (Hi, Wi), indices into `class_names`.
        class_names, palette: one entry per class.
    """
    picture = fitted(painted(image, labels, palette))
    entries = [(class_names[i], share, palette[i]) for i, share in shares(labels, len(class_names))]
    left_out = len(entries) - LISTED
    width = max(WIDTH, picture.width)
    unit = max(14, width // 34)
    font = sans(unit)
    columns = max(1, min(4, width // (11 * unit)))
    rows = -(-min(len(entries), LISTED) // columns) + (left_out > 0)
    line, margin = round(unit * 1.7), unit
    canvas = Image.new("RGB", (width, picture.height + 2 * margin + line * rows), PAPER)
    canvas.paste(picture, (0, 0))
    draw = ImageDraw.Draw(canvas)
    cell = (width - margin) // columns
    for n, (name, share, colour) in enumerate(entries[:LISTED]):
        x, y = margin + n % columns * cell, picture.height + margin + n // columns * line
        draw.rounded_rectangle((x, y, x + unit, y + unit), unit // 5, colour)
        text = f"{100 * share:.0f} %" if share >= 0.01 else "< 1 %"
        room = cell - 3 * unit - draw.textlength(text, font)
        draw.text((x + 1.5 * unit, y - unit // 6), shortened(name, font, room), INK, font)
        draw.text((x + cell - margin, y - unit // 6), text, SOFT, font, anchor="ra")
    if left_out > 0:
        at = (margin, picture.height + margin + (rows - 1) * line)
        draw.text(at, f"and {left_out} more", SOFT, font)
    return canvas


def label_png(labels: Tensor, palette: Sequence[Colour]) -> Image.Image:
    """A label map (Hi, Wi) as a palette picture, whose indices are the labels; 255 is white."""
    picture = Image.fromarray(labels.cpu().numpy().astype(np.uint8))
    table = [*palette, *[(0, 0, 0)] * (IGNORE - len(palette)), (255, 255, 255)]
    picture.putpalette([value for colour in table for value in colour])
    return picture


def shares(labels: Tensor, num_classes: int) -> list[tuple[int, float]]:
    """Classes of a label map with their shares of the pixels, the largest first."""
    numbers = labels.flatten()
    counts = numbers[(numbers >= 0) & (numbers < num_classes)].bincount(minlength=num_classes)
    present = [(i, n / max(1, labels.numel())) for i, n in enumerate(counts.tolist()) if n]
    return sorted(present, key=lambda entry: (-entry[1], entry[0]))


def _borders(numbers: np.ndarray) -> np.ndarray:
    """Mask of pixels whose right or lower neighbour has another class."""
    borders = np.zeros(numbers.shape, bool)
    borders[:, :-1] |= numbers[:, :-1] != numbers[:, 1:]
    borders[:-1] |= numbers[:-1] != numbers[1:]
    return borders
