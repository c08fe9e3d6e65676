"""Class names and colours for segmentation maps."""

import colorsys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

Colour = tuple[int, int, int]

VOC = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *(
        "diningtable",
        "dog",
        "horse",
        "motorbike",
        "person",
        "pottedplant",
        "sheep",
        "sofa",
        "train",
        "tvmonitor",
    ),
)
NOTHING = ("background", "ground")  # classes drawn in grey
GOLDEN = 0.618034  # hue step between classes, as a share of the circle: neighbours differ, none repeats


@cache
def ade20k() -> tuple[tuple[str, ...], tuple[Colour, ...]]:
    """The 150 classes of ADE20K's scene parsing benchmark, in order, and their customary colours."""
    names, colours = [], []
    for line in Path(__file__).with_name("ade20k.txt").read_text().splitlines():
        red, green, blue, name = line.split(" ", 3)
        names.append(name)
        colours.append((int(red), int(green), int(blue)))
    return tuple(names), tuple(colours)


@cache
def cityscapes() -> tuple[tuple[str, ...], tuple[Colour, ...]]:
    """The 19 evaluated classes of Cityscapes, in the order of their train ids, and their colours."""
    from torchvision.datasets import Cityscapes

    rows = [c for c in Cityscapes.classes if 0 <= c.train_id < 255]
    rows.sort(key=lambda c: c.train_id)
    return tuple(c.name for c in rows), tuple(c.color for c in rows)


def voc_colour(index: int) -> Colour:
    """Colour of class `index` in Pascal VOC: its bits distributed over red, green and blue from the top."""
    rgb = [0, 0, 0]
    for place in range(8):
        for channel in range(3):
            rgb[channel] |= (index >> (3 * place + channel) & 1) << (7 - place)
    return rgb[0], rgb[1], rgb[2]


def palette(class_names: Sequence[str]) -> tuple[Colour, ...]:
    """One colour per class: the customary ones of a known set, else well-separated hues."""
    names = tuple(class_names)
    if names == VOC:
        return tuple(voc_colour(i) for i in range(len(names)))
    for known, colours in (ade20k(), *([cityscapes()] if len(names) == 19 else [])):
        if names == known:
            return colours
    return tuple((74, 80, 92) if name in NOTHING else _hue(i) for i, name in enumerate(names))


def _hue(index: int) -> Colour:
    """Alternate bright and pale colours, so that similar hues stay distinguishable."""
    strength, light = ((0.85, 0.95), (0.55, 1.0), (0.9, 0.7))[index % 3]
    red, green, blue = colorsys.hsv_to_rgb(0.02 + index * GOLDEN % 1, strength, light)
    return round(255 * red), round(255 * green), round(255 * blue)
