"""Drawings of shapes on textured ground: an image, its objects and its label map, generated from indices.

A drawing is a function of (seed, split, index, size). Drawings replace photographs for training within minutes and
for testing every layout of data sets. The hue of a shape is a weak cue of its class; its outline determines it.

Shapes: H W the drawing in pixels; (u, v) the plane of one shape, whose radius is 1.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

IGNORE = 255  # label of pixels crossed by an outline
SMALLEST = 32  # pixels: side of a drawing
HUE_SPREAD = 0.16  # of the full circle; neighbouring classes are 1 / 8 apart
MOST_HIDDEN = 0.5  # maximum occluded share of a shape
PLACES = 12  # attempts to place a shape

Array = np.ndarray
Window = tuple[slice, slice]  # rows, columns
Form = Callable[[Array, Array], Array]  # (u, v) -> distance to the outline, positive inside


def _circle(u: Array, v: Array) -> Array:
    return 1 - np.hypot(u, v)


def _ring(u: Array, v: Array) -> Array:
    return 0.25 - np.abs(np.hypot(u, v) - 0.75)


def _moon(u: Array, v: Array) -> Array:
    return np.minimum(1 - np.hypot(u, v), np.hypot(u - 0.55, v) - 0.8)


def _square(u: Array, v: Array) -> Array:
    return 0.8 - np.maximum(np.abs(u), np.abs(v))


def _bar(u: Array, v: Array) -> Array:
    return np.minimum(1 - np.abs(u), 0.28 - np.abs(v))


def _cross(u: Array, v: Array) -> Array:
    return np.maximum(_bar(u, v), _bar(v, u))


def _triangle(u: Array, v: Array) -> Array:
    return np.min(0.5 - _along(u, v, 3), axis=0)


def _star(u: Array, v: Array) -> Array:
    """A pentagram as five half-planes; a point inside lies in at least four."""
    return np.partition(np.cos(0.4 * np.pi) - _along(u, v, 5), 1, axis=0)[1]


def _along(u: Array, v: Array, n: int) -> Array:
    """Projections of a point on `n` evenly spaced directions, (n, ...)."""
    angles = 2 * np.pi * np.arange(n) / n
    return np.stack([u * np.cos(a) + v * np.sin(a) for a in angles])


FORMS: dict[str, Form] = {
    "circle": _circle,
    "ring": _ring,
    "moon": _moon,
    "square": _square,
    "bar": _bar,
    "cross": _cross,
    "triangle": _triangle,
    "star": _star,
}
CLASSES = tuple(FORMS)  # of objects
SEGMENTS = ("ground", *CLASSES)  # of pixels


@dataclass(frozen=True)
class Shape:
    """One object. label: index into `CLASSES`.

    mask: bool (H, W), the visible part. box: around the mask, x1 y1 x2 y2 in pixels. hidden: the occluded share.
    """

    label: int
    mask: Array
    box: tuple[int, int, int, int]
    hidden: float


@dataclass(frozen=True)
class Drawing:
    """image: uint8 (H, W, 3). shapes: back to front. labels: uint8 (H, W), indices into `SEGMENTS`, or `IGNORE`."""

    image: Array
    shapes: tuple[Shape, ...]
    labels: Array


def draw(
    index: int, *, split: Literal["train", "val"] = "train", size: int = 128, seed: int = 0, most: int = 5
) -> Drawing:
    """Drawing `index` of a split.

    Args:
        index: 0 or more, unbounded.
        split: selects the random sequence.
        size: side in pixels.
        seed: selects the random sequence.
        most: maximum number of shapes.

    Raises:
        ValueError: for a size below 32 pixels, or `most` below 1.
    """
    if size < SMALLEST or most < 1:
        raise ValueError(
            f"A drawing has sides from {SMALLEST} pixels and 1 shape or more; got size={size}, most={most}."
        )
    rng = np.random.Generator(np.random.PCG64([seed, ("train", "val").index(split), index]))
    image = _ground(rng, size)
    labels = np.zeros((size, size), np.uint8)
    names: list[int] = []
    whole: list[int] = []  # area of each before occlusion
    seen: list[Array] = []
    for _ in range(1 + int(rng.integers(most))):
        label = int(rng.integers(len(CLASSES)))
        placed = _placed(rng, CLASSES[label], size, whole, seen)
        if placed is None:
            continue
        window, cover = placed
        inside = cover >= 0.5
        for mask in seen:
            mask[window] &= ~inside
        mask = np.zeros((size, size), bool)
        mask[window] = inside
        names, whole, seen = [*names, label], [*whole, int(inside.sum())], [*seen, mask]
        image[window] += cover[..., None] * (_filling(rng, label, size, window) - image[window])
        labels[window][cover > 0.02] = IGNORE
        labels[window][cover >= 0.98] = label + 1
    shapes = tuple(
        Shape(label, mask, _box(mask), 1 - float(mask.sum() / full))
        for label, full, mask in zip(names, whole, seen, strict=True)
    )
    image += 10 * (rng.random(image.shape, np.float32) - 0.5)
    return Drawing(np.clip(np.rint(image), 0, 255).astype(np.uint8), shapes, labels)


def _placed(
    rng: np.random.Generator, name: str, size: int, whole: list[int], seen: list[Array]
) -> tuple[Window, Array] | None:
    """A position where a shape does not occlude others too much, and its coverage per pixel; None: not found."""
    for _ in range(PLACES):
        radius = size * (0.12 + 0.16 * rng.random())
        cx, cy = size * (0.1 + 0.8 * rng.random(2))
        turn = 2 * np.pi * rng.random()
        reach = 1.15 * radius + 1
        rows, columns = (slice(max(0, int(c - reach)), min(size, int(c + reach) + 1)) for c in (cy, cx))
        window = rows, columns
        y, x = _grid(window)
        dx, dy = (x - cx) / radius, (y - cy) / radius
        u, v = dx * np.cos(turn) + dy * np.sin(turn), dy * np.cos(turn) - dx * np.sin(turn)
        cover = np.clip(FORMS[name](u, v) * radius + 0.5, 0, 1).astype(np.float32)
        inside = cover >= 0.5
        left = [mask.sum() - (mask[window] & inside).sum() for mask in seen]
        if inside.any() and all(n >= (1 - MOST_HIDDEN) * full for n, full in zip(left, whole, strict=True)):
            return window, cover
    return None


def _ground(rng: np.random.Generator, size: int) -> Array:
    """Background texture: pale clouds with a weave, float (H, W, 3)."""
    cells = (90 + 130 * rng.random((6, 6, 3))).astype(np.uint8)
    clouds = np.asarray(Image.fromarray(cells).resize((size, size), Image.Resampling.BICUBIC), np.float32)
    return 0.6 * clouds + 55 + _stripes(rng, size, (slice(0, size),) * 2, 18)[..., None]


def _filling(rng: np.random.Generator, label: int, size: int, window: Window) -> Array:
    """Fill of a shape: a saturated colour, sometimes striped, float (H, W, 3) of a window."""
    hue = label / len(CLASSES) + HUE_SPREAD * (rng.random() + rng.random() - 1)
    rgb = [np.clip(abs((hue * 6 + shift) % 6 - 3) - 1, 0, 1) for shift in (0.0, 4.0, 2.0)]
    light, strength = 70 + 150 * rng.random(), 0.55 + 0.4 * rng.random()
    colour = light * (1 - strength + strength * np.array(rgb, np.float32))
    return colour + _stripes(rng, size, window, 28 * rng.random())[..., None]


def _stripes(rng: np.random.Generator, size: int, window: Window, height: float) -> Array:
    """A sine wave in a random direction, (H, W) of a window."""
    turn, waves = 2 * np.pi * rng.random(), 4 + 12 * rng.random()
    y, x = _grid(window)
    wave: Array = height * np.sin(2 * np.pi * waves / size * (x * np.cos(turn) + y * np.sin(turn)))
    return wave.astype(np.float32)


def _grid(window: Window) -> tuple[Array, Array]:
    """Pixel centres of a window: y (H, 1), x (1, W)."""
    rows, columns = window
    return (
        np.arange(rows.start, rows.stop)[:, None] + 0.5,
        np.arange(columns.start, columns.stop)[None] + 0.5,
    )


def _box(mask: Array) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
