"""Draw the figures of docs/families: `python docs/figures.py` writes docs/families/figures/*.svg.

Every figure is drawn for a light and a dark page. The light ones are in the repository; the site has both, and shows
the one that fits its colour scheme (docs/build.py). Values come from the models of this package where a figure shows
values; the rest is a drawing of what their code does.
"""

import math
import sys
from collections.abc import Callable
from pathlib import Path

from drawing import DARK, LIGHT, Colours, Drawing

FOLDER = Path(__file__).parent / "families" / "figures"


def xcit_block(colours: Colours) -> Drawing:
    """A block of XCiT and the two class blocks behind the column."""
    d = Drawing("XCiT: a block mixes channels, then neighbours, then features", 760, 210, colours)
    steps = [
        ("image", "", 80, "line"),
        ("conv stem", "patches + position", 140, "line"),
        ("XCA", "mixes channels", 130, "blue"),
        ("LPI", "3 x 3, neighbours", 130, "green"),
        ("MLP", "each token", 110, "gold"),
    ]
    x = 20.0
    for i, (title, below, width, edge) in enumerate(steps):
        d.box(x, 70, width, 60, title, below, edge)
        if i < len(steps) - 1:
            d.arrow(x + width, 100, x + width + 24, 100)
        x += width + 24
    d.frame(276, 48, 442, 104, "soft")
    d.text(497, 38, "12 or 24 equal blocks; every step: norm, scaled, residual", "soft")
    d.line([(718, 100), (738, 100), (738, 182), (530, 182)], "soft")
    d.arrow(546, 182, 530, 182)
    d.box(300, 162, 230, 40, "2 class blocks", "", "red")
    d.text(292, 187, "a class token attends to the patches", "soft", size=12, at="end")
    return d


def xcit_attention(colours: Colours) -> Drawing:
    """Token attention beside cross-covariance attention, and what both cost."""
    d = Drawing(
        "Attention between tokens grows with the square of their number, between channels in proportion",
        760,
        330,
        colours,
    )
    d.text(120, 30, "between tokens", bold=True)
    d.grid(40, 45, 16, 16, 10, lambda i, j: ("red", 0.15 + 0.7 * math.exp(-((i - j) ** 2) / 14)))
    d.text(120, 225, "N x N weights a head", "soft", size=12)
    d.text(120, 243, "4 x the tokens: 16 x the map", "soft", size=12)
    d.text(330, 30, "between channels (XCA)", bold=True)
    d.grid(300, 95, 6, 6, 10, lambda i, j: ("blue", 0.15 + 0.7 * abs(math.cos(1.7 * i - j))))
    d.text(330, 225, "D x D weights a head", "soft", size=12)
    d.text(330, 243, "any number of tokens: the same map", "soft", size=12)
    left, top, width, height, most = 500, 50, 230, 170, 40.0
    d.line([(left, top), (left, top + height), (left + width, top + height)], "line")
    dim, heads, patch = 384, 8, 8
    sides = range(224, 1025, 16)

    def place(side: float, macs: float) -> tuple[float, float]:
        return left + width * (side - 224) / 800, top + height * (1 - min(macs / 1e9 / most, 1.0))

    tokens = [(side / patch) ** 2 for side in sides]
    square = [place(s, 2 * n * n * dim) for s, n in zip(sides, tokens, strict=True)]
    d.line([point for point in square if point[1] > top], "red", 2.5)
    d.line([place(s, 2 * n * dim * dim / heads) for s, n in zip(sides, tokens, strict=True)], "blue", 2.5)
    for value in (0, 20, 40):
        d.text(left - 8, place(224, value * 1e9)[1] + 5, str(value), "soft", size=12, at="end")
    for side in (224, 512, 1024):
        d.text(place(side, 0)[0], top + height + 20, str(side), "soft", size=12)
    d.text(left + width / 2, top + height + 40, "image side, pixels", "soft", size=12)
    d.text(left + width / 2 - 10, 30, "multiply-adds of attention, G", bold=True)
    d.text(left + 118, top + 24, "tokens", "red", at="end")
    d.text(left + width, top + height - 14, "channels", "blue", at="end")
    d.text(
        380,
        300,
        "Width 384, 8 heads, patches of 8 pixels: map times values and its making, without projections.",
        "soft",
        size=12,
    )
    return d


def convit_heads(colours: Colours) -> Drawing:
    """The positional part of each head of convit_small at the start, from the model."""
    import torch

    from tetravit.backbones.convit import GatedPositionalAttention

    attention = GatedPositionalAttention(432, 9)
    torch.nn.init.zeros_(attention.pos_proj.bias)
    attention.init_local(1.0)
    with torch.no_grad():
        maps = attention.positional_map((9, 9))[:, 40].unflatten(1, (9, 9))
    d = Drawing("ConViT at the start: each head attends at one offset of a 3 x 3 kernel", 760, 250, colours)
    most = float(maps.max())
    for head in range(9):
        x, y = 24 + 82 * head, 60
        values = maps[head][1:8, 1:8].tolist()
        d.grid(x, y, 7, 7, 10, lambda i, j, v=values: ("blue", round(v[i][j] / most, 2)))  # type: ignore[misc]
        d.frame(x + 30, y + 30, 10, 10, "red")
        d.text(x + 35, y + 90, f"head {head + 1}", "soft", size=12)
    d.text(380, 36, "Positional weights of one patch (red), 9 heads, locality strength 1", bold=True)
    d.text(380, 185, "weights = (1 - gate) x content + gate x position", bold=True)
    d.text(
        380,
        210,
        "One gate a head, 0.73 at the start: training moves it towards content or keeps the convolution.",
        "soft",
        size=12,
    )
    return d


def convit_blocks(colours: Colours) -> Drawing:
    """Ten gated blocks, then two plain ones that the class token joins."""
    d = Drawing(
        "ConViT: ten blocks of gated positional attention, then two plain ones with the class token",
        760,
        150,
        colours,
    )
    for i in range(12):
        gated = i < 10
        d.rect(90 + 50 * i, 50, 40, 56, "fill", "blue" if gated else "gold")
        d.text(110 + 50 * i, 75, str(i + 1), bold=True)
        d.text(110 + 50 * i, 96, "GPSA" if gated else "SA", "soft", size=11)
    d.text(50, 82, "patches", "soft", size=12)
    d.arrow(610, 26, 600, 46, "red")
    d.text(616, 22, "class token joins", "red", at="start", size=12)
    d.text(335, 132, "patches alone; positions by offset, in every block", "soft", size=12)
    d.text(640, 132, "class token + patches", "soft", size=12)
    return d


def gcvit_attention(colours: Colours) -> Drawing:
    """Windows with their own queries, and windows with the queries of the whole image."""
    d = Drawing("GC ViT: queries of a window's own tokens, or of the whole image", 760, 320, colours)
    side, query = 20, (2, 5)
    for x, title, edge in ((40, "local attention", "blue"), (480, "global attention", "red")):
        d.text(x + 120, 30, title, bold=True)

        def fill(i: int, j: int, edge: str = edge) -> tuple[str, float]:
            window = (i // 4, j // 4) == (query[0] // 4, query[1] // 4)
            return edge, 0.30 if window else (0.30 if edge == "red" else 0.0)

        d.grid(x, 50, 12, 12, side, fill)
        for i in range(3):
            for j in range(3):
                d.frame(x + 80 * i, 50 + 80 * j, 80, 80, "ink")
    d.rect(40 + side * query[1], 50 + side * query[0], side, side, "blue")
    d.text(160, 312, "a token attends to its own window", "soft", size=12)
    d.text(600, 312, "queries of the image attend in every window", "soft", size=12)
    d.grid(345, 130, 4, 4, 15, lambda i, j: ("red", 0.9))
    d.text(375, 112, "global queries", "red", bold=True)
    d.arrow(408, 160, 474, 160, "red")
    d.text(375, 212, "from the whole map,", "soft", size=12)
    d.text(375, 228, "one per place in a window", "soft", size=12)
    return d


def gcvit_stages(colours: Colours) -> Drawing:
    """Four stages at 224 pixels: grid, window, global queries."""
    d = Drawing("GC ViT at 224 pixels: grids and windows of the four stages", 760, 230, colours)
    stages = [(56, 7, 4), (28, 7, 8), (14, 14, 16), (7, 7, 32)]
    x = 30.0
    for number, (grid, window, stride) in enumerate(stages, 1):
        side = 112 if grid == 56 else 112 * max(grid, 20) / 56
        top = 150 - side
        d.rect(x, top, side, side, "fill", "line")
        count = grid // window
        for i in range(count):
            for j in range(count):
                d.frame(x + side * i / count, top + side * j / count, side / count, side / count, "blue")
        d.text(x, 172, f"stage {number}, stride {stride}", at="start", bold=True, size=13)
        d.text(x, 190, f"{grid} x {grid} tokens", "soft", at="start", size=12)
        d.text(x, 207, f"windows of {window}", "soft", at="start", size=12)
        if number < 4:
            d.arrow(x + side + 8, 130, x + 168, 130)
            d.text(x + side / 2 + 88, 118, "halve", "soft", size=12)
        x += 185
    d.text(380, 24, "In each stage local and global attention take turns.", "soft", size=13)
    return d


def twins_attention(colours: Colours) -> Drawing:
    """LSA and GSA: windows, then a sub-sampled map."""
    d = Drawing("Twins-SVT: attention within windows, then global sub-sampled attention", 760, 320, colours)
    d.text(160, 30, "LSA: within windows", bold=True)
    d.text(560, 30, "GSA: to sub-sampled tokens", bold=True)
    d.grid(40, 50, 12, 12, 20, lambda i, j: ("blue", 0.3 if i < 4 and 4 <= j < 8 else 0.0))
    d.grid(380, 50, 12, 12, 20, lambda i, j: ("green", 0.0))
    for x in (40, 380):
        for i in range(3):
            for j in range(3):
                d.frame(x + 80 * i, 50 + 80 * j, 80, 80, "ink" if x == 40 else "green")
    d.rect(140, 90, 20, 20, "blue")
    d.rect(480, 90, 20, 20, "green")
    d.grid(670, 140, 3, 3, 22, lambda i, j: ("green", 0.55))
    d.arrow(500, 100, 664, 160, "green")
    d.text(703, 124, "summary", "green", bold=True)
    d.text(703, 228, "one token a tile,", "soft", size=12)
    d.text(703, 244, "by a convolution", "soft", size=12)
    d.text(160, 312, "a token attends to its own window", "soft", size=12)
    d.text(500, 312, "every token attends to the same few", "soft", size=12)
    return d


def twins_stages(colours: Colours) -> Drawing:
    """Which blocks are local and which global."""
    d = Drawing(
        "Twins: SVT alternates local and global blocks, PCPVT has global ones alone", 760, 200, colours
    )
    for row, (name, stages) in enumerate(
        (("SVT-S", ("LG", "LG", "LGLGLGLGLG", "LGLG")), ("PCPVT-S", ("GGG", "GGGG", "GGGGGG", "GGG")))
    ):
        x, y = 110.0, 50 + 70 * row
        d.text(94, y + 22, name, at="end", bold=True)
        for stage in stages:
            for i, letter in enumerate(stage):
                d.rect(x, y, 26, 34, "fill", "blue" if letter == "L" else "green")
                d.text(x + 13, y + 22, letter, "blue" if letter == "L" else "green", bold=True)
                if i == 0:
                    d.rect(x + 24, y + 38, 8, 8, "gold")
                x += 30
            x += 22
    d.rect(112, 172, 8, 8, "gold")
    d.text(
        128,
        181,
        "position from a depthwise convolution, after the first block of a stage",
        "soft",
        at="start",
        size=12,
    )
    d.text(110, 32, "stages at strides 4, 8, 16, 32", "soft", at="start", size=12)
    return d


def deit_tokens(colours: Colours) -> Drawing:
    """Class and distillation token, their losses."""
    d = Drawing(
        "DeiT: the distillation token learns from a teacher, the class token from the labels",
        760,
        200,
        colours,
    )
    names = ["class", "distil", *(f"p{i}" for i in range(1, 8)), "..."]
    for i, name in enumerate(names):
        edge = {0: "blue", 1: "red"}.get(i, "line")
        d.rect(40 + 48 * i, 130, 40, 34, "fill", edge)
        d.text(60 + 48 * i, 152, name, size=12)
    d.rect(40, 80, 472, 34, "fill", "line")
    d.text(276, 102, "12 blocks of self-attention and MLP", bold=True)
    d.arrow(60, 80, 60, 52, "blue")
    d.arrow(108, 80, 108, 52, "red")
    d.text(40, 40, "labels", "blue", at="start", bold=True)
    d.text(108, 40, "teacher's prediction", "red", at="start", bold=True)
    d.text(530, 102, "prediction: mean of both heads", "soft", at="start", size=12)
    d.text(276, 186, "patches of 16 x 16 pixels with learned positions", "soft", size=12)
    return d


FIGURES: dict[str, Callable[[Colours], Drawing]] = {
    "xcit-block": xcit_block,
    "xcit-attention": xcit_attention,
    "convit-heads": convit_heads,
    "convit-blocks": convit_blocks,
    "gcvit-attention": gcvit_attention,
    "gcvit-stages": gcvit_stages,
    "twins-attention": twins_attention,
    "twins-stages": twins_stages,
    "deit-tokens": deit_tokens,
}


def draw(folder: Path, *, dark: bool = False) -> None:
    """Write every figure; dark ones are called NAME-dark.svg."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in FIGURES.items():
        file = folder / f"{name}{'-dark' if dark else ''}.svg"
        file.write_text(figure(DARK if dark else LIGHT).svg(), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if sys.argv[1:] else FOLDER)
