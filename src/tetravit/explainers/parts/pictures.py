"""Explanations as pictures."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from tetravit.draw.base import LARGEST
from tetravit.draw.heat import (
    COLUMNS,
    MOST_NUMBERS,
    PANEL,
    Panel,
    Scale,
    coloured,
    dots,
    figure,
    heat,
    matrix,
    outline,
    scale_of,
)
from tetravit.explainers.base import Map
from tetravit.explainers.parts.explanation import Explanation, Scaling
from tetravit.explainers.parts.view import Enlarging, View, whole_input

MOST = 24  # panels of a map
WIDEST = 6  # maximum panels of a map per row


def drawn(e: Explanation, *, scale: Scaling, blocks: bool, mean: bool, as_published: bool) -> Image.Image:
    """See `Explanation.draw`."""
    panels: list[Panel | None] = []
    if blocks or as_published:  # cells instead of the points in them
        e = replace(e, maps=tuple(replace(one, samples=None) for one in e.maps))
    several = sum(len(one.slices) or 1 for one in e.maps) > 1
    if e.pixels is not None and e.view is not None and any(one.has_places for one in e.maps):
        if as_published:
            panels.append((_blown_up(Image.fromarray(_shown(e.input))), "input", None))
        else:
            picture = Image.fromarray(_sized(e.pixels, several))
            for box in dict.fromkeys(one.box for one in e.maps if one.box is not None):
                _outlined(picture, e, box)
            panels.append((picture, "picture", None))
    kinds = list(dict.fromkeys(one.kind for one in e.maps))
    layers = list(dict.fromkeys(one.layer for one in e.maps if one.layer))
    most = max(len(one.slices) + (len(one.slices) > 1 and one.has_places) for one in e.maps)
    rows = len(e.maps) > 1 and most > 1 and not mean  # each map starts a new row
    columns = most if rows and most <= WIDEST else COLUMNS
    for one in e.maps:
        if rows:
            panels += [None] * (-len(panels) % columns)
        layer = one.layer * (len(layers) > 1 and ", " not in one.layer)  # of several, the kind says which
        name = ", ".join(part for part in (layer, one.kind * (len(kinds) > 1)) if part)
        parts = _parts(one, mean, name, repeat=len(e.maps) > 1)
        scales = _scales(one, parts, "map" if as_published else scale)
        for (title, values), colour in zip(parts, scales, strict=True):
            numbers = not values.has_places and values.grid[1] <= MOST_NUMBERS  # printed in the cells
            picture = _panel(e, values, colour, blocks, as_published, several)
            panels.append((picture, title, None if numbers else colour))
    layer = layers[0] if len(layers) == 1 else ""
    kind = kinds[0] if several and len(kinds) == 1 else ""
    facts = (e.model, e.method, kind, layer, e.maps[0].target, Path(e.image).name)
    heading = " - ".join(fact for fact in facts if fact)
    return figure(panels, heading, columns)


def _parts(one: Map, mean: bool, name: str, *, repeat: bool) -> list[tuple[str, Map]]:
    """The panels of a map: the mean over its heads where there are several, then each.

    name: distinguishes the map from the others: its layer, its kind; "": not needed. repeat: whether each panel has
        it.
    """
    lead = name if repeat else ""
    if not one.slices:
        return [(name or one.kind, one)]
    if not one.has_places:
        return [(f"{lead or one.kind}, {s}", one.select(i)) for i, s in enumerate(one.slices[:MOST])]
    several = f"{'mean of' if one.samples is None else 'all'} {len(one.slices)} heads"
    panels = [(f"{name}, {several}" if name else several, one.mean())] if len(one.slices) > 1 else []
    if mean and panels:
        return panels
    heads = [(f"{lead}, {s}" if lead else s, one.select(i)) for i, s in enumerate(one.slices[:MOST])]
    return [*panels, *heads]


def _scales(one: Map, parts: list[tuple[str, Map]], scaling: Scaling) -> list[Scale]:
    log = scaling == "log" and not one.signed
    if scaling == "map":
        return [scale_of(_values(part), signed=one.signed) for _, part in parts]
    together = np.concatenate([_values(part).ravel() for _, part in parts])
    return [scale_of(together, signed=one.signed, log=log)] * len(parts)


def _panel(
    e: Explanation, one: Map, scale: Scale, blocks: bool, as_published: bool, several: bool
) -> Image.Image:
    if not one.has_places or e.view is None or e.pixels is None:
        return matrix(one.mean().values.numpy(), scale, one.axes)
    if as_published:
        values, defined = whole_input(e.view.sides).paint(one.mean(), how="published")
        shown = np.where(defined.numpy()[..., None], coloured(values.numpy(), scale), 255)
        return _blown_up(Image.fromarray(np.rint(shown).astype(np.uint8)))
    image = _sized(e.pixels, several)
    if one.samples is not None:
        picture = _sampled(image, e.view, one, scale)
    else:
        picture = over(image, e.view, one.mean(), scale, "blocks" if blocks else "smooth")
    for box in (one.query_box, one.box):
        if box is not None:
            _outlined(picture, e, box)
    return picture


def _values(one: Map) -> np.ndarray:
    """Meaning of the colours of a map: weights of its points, else its values."""
    values: np.ndarray = (one.values if one.samples is None else one.samples[..., 2]).numpy()
    return values


def _sampled(image: np.ndarray, view: View, one: Map, scale: Scale) -> Image.Image:
    """The points of a map over the picture, uint8 (Ho, Wo, 3)."""
    assert one.samples is not None
    x, y, weights = one.samples.flatten(0, 1).double().numpy().T
    factor = image.shape[1] / view.picture[1], image.shape[0] / view.picture[0]
    places = [
        (at + view.offset[axis]) * view.picture[axis] / view.resized[axis] * f
        for at, axis, f in zip((x, y), (1, 0), factor, strict=True)
    ]
    return dots(image, np.stack(places, axis=1), weights, scale)


def _blown_up(picture: Image.Image) -> Image.Image:
    """A picture below the size of a panel, each pixel as a square of pixels."""
    factor = max(1, PANEL // picture.width)
    return picture.resize((factor * picture.width, factor * picture.height), Image.Resampling.NEAREST)


def _outlined(picture: Image.Image, e: Explanation, box: tuple[float, float, float, float]) -> None:
    """Draw a box in pixels of the model's input over the picture, in place."""
    assert e.view is not None
    factor = picture.width / e.view.picture[1]
    left, top, right, bottom = (factor * edge for edge in e.view.to_picture(box))
    outline(picture, (left, top, right, bottom))


def over(image: np.ndarray, view: View, one: Map, scale: Scale, how: Enlarging = "smooth") -> Image.Image:
    """A map (H, W) over the picture, uint8 (Ho, Wo, 3) at any size; what the model did not see is shaded."""
    size = (image.shape[0], image.shape[1])
    values, defined = view.paint(one, size, how)
    left, top, right, bottom = view.seen
    rows = (np.arange(size[0]) + 0.5) / size[0] * view.picture[0]
    columns = (np.arange(size[1]) + 0.5) / size[1] * view.picture[1]
    seen = ((rows >= top) & (rows <= bottom))[:, None] & ((columns >= left) & (columns <= right))
    return heat(image, values.numpy(), defined.numpy(), scale, seen)


def _sized(pixels: Tensor, several: bool) -> np.ndarray:
    """The picture as uint8 (Ho, Wo, 3), at the size of a panel."""
    picture = Image.fromarray(rgb(pixels))
    wanted = PANEL if several else min(max(picture.width, PANEL), LARGEST)
    size = (wanted, max(1, round(picture.height * wanted / picture.width)))
    how = Image.Resampling.NEAREST if picture.width < 64 else Image.Resampling.LANCZOS
    return np.asarray(picture.resize(size, how))


def rgb(pixels: Tensor) -> np.ndarray:
    """uint8 (C, H, W) -> uint8 (H, W, 3); of other than three channels the first, grey."""
    pixels = pixels if len(pixels) == 3 else pixels[:1].expand(3, -1, -1)
    return np.ascontiguousarray(pixels.permute(1, 2, 0).cpu().numpy())


def _shown(prepared: Tensor | None) -> np.ndarray:
    """The model's input (C, Hi, Wi), normalized, as uint8: from its smallest to its largest value."""
    assert prepared is not None
    low, high = prepared.min(), prepared.max()
    return rgb((255 * (prepared - low) / (high - low).clamp(min=1e-6)).round().byte())
