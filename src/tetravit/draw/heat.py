"""Heat maps: drawn over the image, with a colour bar.

Shapes: H W a picture in pixels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from tetravit.draw.base import INK, PAPER, SOFT, sans, shortened

OPAQUE = 0.6  # opacity of the colours
HIDDEN = 0.35  # brightness of the image outside the model's input
PALE = 0.5  # contrast of the image below points
DOT = 12  # pixels, diameter of the heaviest point
FINE = 4  # supersampling of points
FLOOR = 1e-6  # minimum of a logarithmic scale, relative to the largest value
PANEL = 320  # pixels, width of a picture in a figure
COLUMNS = 4
BAR = 16  # pixels, width of the colour bar
HEADING = 900  # pixels, maximum width of a heading
MOST_NUMBERS = 20  # maximum columns of a table with printed numbers


@dataclass(frozen=True)
class Scale:
    """The value range of a colour scale. signed: centred at 0. log: logarithmic."""

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
        """The values at both ends of the scale."""
        return (FLOOR * self.high, self.high) if self.log else (self.low, self.high)


def scale_of(values: np.ndarray, *, signed: bool = False, log: bool = False) -> Scale:
    """A scale from the smallest to the largest value; signed: symmetric about 0."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return Scale(0.0, 0.0, signed, log)
    if signed:
        top = float(np.abs(finite).max())
        return Scale(-top, top, True)
    return Scale(float(finite.min()), float(finite.max()), log=log)


Panel = tuple[Image.Image, str, Scale | None]  # a picture, its title, the scale of its colours


@cache
def colours(signed: bool) -> np.ndarray:
    """The colour table of a scale (256, 3) float32 in 0..255: inferno, or diverging blue-white-red."""
    import matplotlib  # slow import

    table = matplotlib.colormaps["RdBu_r" if signed else "inferno"](np.arange(256))
    return (255 * table[:, :3]).astype(np.float32)


def coloured(values: np.ndarray, scale: Scale) -> np.ndarray:
    """Values (H, W) -> colours (H, W, 3) float32."""
    return colours(scale.signed)[np.rint(255 * scale.share(values)).astype(np.int64)]


def heat(
    image: np.ndarray, values: np.ndarray, defined: np.ndarray, scale: Scale, seen: np.ndarray | None = None
) -> Image.Image:
    """Draw a map over an image.

    Args:
        image: uint8 (H, W, 3), drawn in grey below the colours.
        values: (H, W). defined: bool (H, W): where the map is defined; elsewhere only the image is drawn.
        seen: bool (H, W): the part of the image in the model's input; the rest is shaded. None: all.
    """
    pixels = image.astype(np.float32)
    grey = pixels.mean(axis=2, keepdims=True)
    over = grey + OPAQUE * (coloured(values, scale) - grey)
    shown = np.where(defined[..., None], over, pixels)
    if seen is not None:
        shown = np.where(seen[..., None], shown, HIDDEN * grey + (1 - HIDDEN) * 232.0)
    return Image.fromarray(np.rint(shown).clip(0, 255).astype(np.uint8))


def outline(picture: Image.Image, box: tuple[float, float, float, float]) -> None:
    """Draw a red rectangle in place, edges in pixels, with a light outline: the query or the target of a map."""
    draw = ImageDraw.Draw(picture)
    left, top, right, bottom = (round(edge) for edge in box)
    draw.rectangle((left - 1, top - 1, right, bottom), outline="white")
    draw.rectangle((left, top, right - 1, bottom - 1), outline="#e02020", width=2)


def dots(image: np.ndarray, places: np.ndarray, weights: np.ndarray, scale: Scale) -> Image.Image:
    """Weighted points over an image, the heaviest on top; their areas are in proportion to the weights.

    Args:
        image: uint8 (H, W, 3), shown in pale colours.
        places: (n, 2), x y in pixels of the image, counted from its corner. weights: (n,), not below 0.
        scale: of the weights; its highest is a disc of `DOT` pixels.
    """
    pale = 255 - PALE * (255 - image.astype(np.float32))
    height, width = image.shape[:2]
    large = Image.fromarray(np.rint(pale).astype(np.uint8)).resize((FINE * width, FINE * height))
    draw = ImageDraw.Draw(large)
    fills = coloured(weights[None], scale)[0]
    for i in weights.argsort(kind="stable"):
        radius = max(1.5, DOT / 2 * math.sqrt(weights[i] / max(scale.high, 1e-30)))
        x, y = places[i]
        box = [FINE * edge for edge in (x - radius, y - radius, x + radius, y + radius)]
        draw.ellipse(box, fill=tuple(int(part) for part in fills[i]), outline="white", width=FINE // 2)
    return large.resize((width, height), Image.Resampling.BOX)


def matrix(
    values: np.ndarray, scale: Scale, axes: tuple[str, str] = ("row", "column"), width: int = PANEL
) -> Image.Image:
    """A table of numbers (rows, columns) as coloured cells; small tables with numbers and indices from 0.

    axes: titles of rows and columns.
    """
    rows, columns = values.shape
    font = sans(12)
    if columns > MOST_NUMBERS:
        cell = max(1, width // columns)
        picture = Image.fromarray(coloured(np.nan_to_num(values), scale).astype(np.uint8))
        picture = picture.resize((cell * columns, cell * rows), Image.Resampling.NEAREST)
        canvas = Image.new("RGB", (picture.width, picture.height + 20), PAPER)
        canvas.paste(picture, (0, 0))
        text = shortened(f"rows: {axes[0]}, columns: {axes[1]}", font, picture.width)
        ImageDraw.Draw(canvas).text((0, picture.height + 4), text, SOFT, font)
        return canvas
    colour = coloured(np.nan_to_num(values), scale)
    wide, high = max(46, width // columns), 24
    left, top = 52, 40
    canvas = Image.new("RGB", (left + wide * columns, top + high * rows), PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.text((left + wide * columns / 2, 4), axes[1], SOFT, font, anchor="ma")
    draw.text((left - 8, top - 6), axes[0], SOFT, font, anchor="rs")
    for j in range(columns):
        draw.text((left + (j + 0.5) * wide, top - 6), str(j), SOFT, font, anchor="ms")
    for i in range(rows):
        draw.text((left - 8, top + (i + 0.5) * high), str(i), SOFT, font, anchor="rm")
        for j in range(columns):
            fill = tuple(int(part) for part in colour[i, j])
            corner = (left + j * wide, top + i * high)
            draw.rectangle((*corner, corner[0] + wide - 1, corner[1] + high - 1), fill=fill)
            dark = 0.3 * fill[0] + 0.59 * fill[1] + 0.11 * fill[2] < 140
            text = f"{values[i, j]:.2f}" if np.isfinite(values[i, j]) else "none"
            place = (corner[0] + wide / 2, corner[1] + high / 2)
            draw.text(place, text, "white" if dark else INK, font, anchor="mm")
    return canvas


def figure(panels: Sequence[Panel | None], heading: str = "", columns: int = COLUMNS) -> Image.Image:
    """Pictures side by side, each with a title above and a colour bar to the right.

    None leaves a gap.
    """
    columns = max(1, min(columns, len(panels)))
    pictures = [panel[0] for panel in panels if panel is not None]
    wide = max(picture.width for picture in pictures)
    high = max(picture.height for picture in pictures)
    font, small = sans(15), sans(12)
    margin, top, side = 14, 26, BAR + 66
    cell = (wide + side + margin, high + top + margin)
    rows = -(-len(panels) // columns)
    above = 30 if heading else 0
    room = min(HEADING, round(font.getlength(heading)) + margin)
    size = (margin + max(columns * cell[0], room), margin + above + rows * cell[1])
    canvas = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(canvas)
    if heading:
        draw.text((margin, 8), shortened(heading, font, canvas.width - 2 * margin), INK, font)
    for n, panel in enumerate(panels):
        if panel is None:
            continue
        picture, title, scale = panel
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
    """A colour bar, the largest value on top, with the values at its ends."""
    ramp = colours(scale.signed)[np.linspace(255, 0, height).astype(np.int64)].astype(np.uint8)
    canvas.paste(Image.fromarray(np.repeat(ramp[:, None], BAR, axis=1)), corner)
    low, high = scale.ends
    x = corner[0] + BAR + 4
    draw.text((x, corner[1]), f"{high:.3g}", SOFT, font)  # type: ignore[arg-type]
    draw.text((x, corner[1] + height), f"{low:.3g}", SOFT, font, anchor="ld")  # type: ignore[arg-type]
    if scale.log:
        draw.text((x, corner[1] + height // 2), "log", SOFT, font)  # type: ignore[arg-type]
