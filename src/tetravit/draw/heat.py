"""Maps of numbers as pictures: laid over the image, with a scale of their values beside them.

Shapes: H W a picture in pixels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from tetravit.draw.base import INK, PAPER, SOFT, sans, shortened

OPAQUE = 0.6  # share of the colour over the image
HIDDEN = 0.35  # share of the image where the model saw nothing, in grey
FLOOR = 1e-6  # of a logarithmic scale, as a share of the largest value
PANEL = 320  # pixels, width of a picture in a figure
COLUMNS = 4
BAR = 16  # pixels, width of the scale


@dataclass(frozen=True)
class Scale:
    """The range of values that the colours span. signed: 0 in the middle. log: logarithmic."""

    low: float
    high: float
    signed: bool = False
    log: bool = False

    def share(self, values: np.ndarray) -> np.ndarray:
        """Values -> [0, 1]."""
        if self.log:
            top = max(self.high, 1e-30)
            values = np.log10(np.maximum(values, FLOOR * top))
            low, high = math.log10(FLOOR * top), math.log10(top)
        else:
            low, high = self.low, self.high
        if high <= low:
            return np.zeros_like(values)
        return np.clip((values - low) / (high - low), 0, 1)

    @property
    def ends(self) -> tuple[float, float]:
        """The values of both ends of the scale."""
        return (FLOOR * self.high, self.high) if self.log else (self.low, self.high)


def scale_of(values: np.ndarray, *, signed: bool = False, log: bool = False) -> Scale:
    """The scale from the smallest to the largest value; signed: symmetric about 0."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return Scale(0.0, 0.0, signed, log)
    if signed:
        top = float(np.abs(finite).max())
        return Scale(-top, top, True)
    return Scale(float(finite.min()), float(finite.max()), log=log)


@cache
def colours(signed: bool) -> np.ndarray:
    """The colours of a scale (256, 3) float32 in 0..255: inferno, or blue through white to red."""
    import matplotlib  # loads slowly

    table = matplotlib.colormaps["RdBu_r" if signed else "inferno"](np.arange(256))
    return (255 * table[:, :3]).astype(np.float32)


def coloured(values: np.ndarray, scale: Scale) -> np.ndarray:
    """Values (H, W) -> colours (H, W, 3) float32."""
    return colours(scale.signed)[np.rint(255 * scale.share(values)).astype(np.int64)]


def heat(
    image: np.ndarray, values: np.ndarray, defined: np.ndarray, scale: Scale, seen: np.ndarray | None = None
) -> Image.Image:
    """A map over an image.

    Args:
        image: uint8 (H, W, 3), shown in grey below the colours.
        values: (H, W). defined: bool (H, W): where the map has a value; elsewhere the image stays.
        seen: bool (H, W): what the model saw of the image; the rest is shaded. None: all.
    """
    pixels = image.astype(np.float32)
    grey = pixels.mean(axis=2, keepdims=True)
    over = grey + OPAQUE * (coloured(values, scale) - grey)
    shown = np.where(defined[..., None], over, pixels)
    if seen is not None:
        shown = np.where(seen[..., None], shown, HIDDEN * grey + (1 - HIDDEN) * 232.0)
    return Image.fromarray(np.rint(shown).clip(0, 255).astype(np.uint8))


def matrix(values: np.ndarray, scale: Scale, width: int = PANEL) -> Image.Image:
    """A table of numbers (rows, columns) as squares."""
    rows, columns = values.shape
    cell = max(1, width // columns)
    picture = Image.fromarray(coloured(np.nan_to_num(values), scale).astype(np.uint8))
    return picture.resize((cell * columns, cell * rows), Image.Resampling.NEAREST)


def figure(
    panels: Sequence[tuple[Image.Image, str, Scale | None]], heading: str = "", columns: int = COLUMNS
) -> Image.Image:
    """Pictures beside each other, each with a title above and the scale of its colours to the right."""
    columns = max(1, min(columns, len(panels)))
    wide = max(picture.width for picture, _, _ in panels)
    high = max(picture.height for picture, _, _ in panels)
    font, small = sans(15), sans(12)
    margin, top, side = 14, 26, BAR + 66
    cell = (wide + side + margin, high + top + margin)
    rows = -(-len(panels) // columns)
    above = 30 if heading else 0
    canvas = Image.new("RGB", (margin + columns * cell[0], margin + above + rows * cell[1]), PAPER)
    draw = ImageDraw.Draw(canvas)
    if heading:
        draw.text((margin, 8), shortened(heading, font, canvas.width - 2 * margin), INK, font)
    for n, (picture, title, scale) in enumerate(panels):
        x, y = margin + n % columns * cell[0], margin + above + n // columns * cell[1]
        draw.text((x, y), shortened(title, font, wide + side), INK, font)
        canvas.paste(picture, (x, y + top))
        if scale is not None:
            _bar(canvas, draw, (x + picture.width + 8, y + top), picture.height, scale, small)
    return canvas


def _bar(
    canvas: Image.Image,
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    height: int,
    scale: Scale,
    font: object,
) -> None:
    """The scale of the colours, the largest value on top, and the values at its ends."""
    ramp = colours(scale.signed)[np.linspace(255, 0, height).astype(np.int64)].astype(np.uint8)
    canvas.paste(Image.fromarray(np.repeat(ramp[:, None], BAR, axis=1)), corner)
    low, high = scale.ends
    x = corner[0] + BAR + 4
    draw.text((x, corner[1]), f"{high:.3g}", SOFT, font)  # type: ignore[arg-type]
    draw.text((x, corner[1] + height), f"{low:.3g}", SOFT, font, anchor="ld")  # type: ignore[arg-type]
    if scale.log:
        draw.text((x, corner[1] + height // 2), "log", SOFT, font)  # type: ignore[arg-type]
