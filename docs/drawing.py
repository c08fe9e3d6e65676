"""A small SVG canvas in two palettes, for docs/figures.py."""

import math
from collections.abc import Callable
from html import escape

Colours = dict[str, str]

LIGHT = {
    "page": "#ffffff",
    "ink": "#1f2933",
    "soft": "#5f6c7b",
    "line": "#c3ccd6",
    "fill": "#eef2f6",
    "blue": "#1f6fb2",
    "red": "#c4472f",
    "green": "#2f8557",
    "gold": "#a86f00",
}
DARK = {
    "page": "#1e2129",
    "ink": "#e4e9f0",
    "soft": "#a3afbe",
    "line": "#4a5362",
    "fill": "#2b303b",
    "blue": "#6db3ee",
    "red": "#f08a72",
    "green": "#6cc795",
    "gold": "#e0ad4d",
}


class Drawing:
    """An SVG picture; colours are names of the palette."""

    def __init__(self, title: str, width: int, height: int, palette: Colours) -> None:
        self.palette, self.parts = (
            palette,
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
                f'height="{height}" role="img" font-family="system-ui, sans-serif" font-size="14">',
                f"<title>{escape(title)}</title>",
                f'<rect width="{width}" height="{height}" rx="8" fill="{palette["page"]}"/>',
            ],
        )

    def rect(
        self,
        x: float,
        y: float,
        w: float,
        h: float,
        fill: str = "fill",
        edge: str = "",
        *,
        share: float = 1.0,
    ) -> None:
        stroke = f' stroke="{self.palette[edge]}" stroke-width="1.5"' if edge else ""
        shade = f' fill-opacity="{share:.3g}"' if share < 1 else ""
        colour = self.palette.get(fill, "none")
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" fill="{colour}"{shade}{stroke}/>'
        )

    def text(
        self,
        x: float,
        y: float,
        text: str,
        colour: str = "ink",
        *,
        size: int = 14,
        at: str = "middle",
        bold: bool = False,
    ) -> None:
        weight = ' font-weight="600"' if bold else ""
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" text-anchor="{at}" font-size="{size}"{weight} '
            f'fill="{self.palette[colour]}">{escape(text)}</text>'
        )

    def line(
        self,
        points: list[tuple[float, float]],
        colour: str = "ink",
        width: float = 1.5,
        *,
        dashed: bool = False,
    ) -> None:
        path = " ".join(f"{x:.5g},{y:.5g}" for x, y in points)
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self.parts.append(
            f'<polyline points="{path}" fill="none" stroke="{self.palette[colour]}" stroke-width="{width:g}"{dash}/>'
        )

    def arrow(self, x1: float, y1: float, x2: float, y2: float, colour: str = "soft") -> None:
        self.line([(x1, y1), (x2, y2)], colour)
        angle = math.atan2(y2 - y1, x2 - x1)
        ends = [(x2 - 8 * math.cos(angle + turn), y2 - 8 * math.sin(angle + turn)) for turn in (0.45, -0.45)]
        self.line([ends[0], (x2, y2), ends[1]], colour)

    def box(
        self, x: float, y: float, w: float, h: float, title: str, below: str = "", edge: str = "line"
    ) -> None:
        """A labelled step."""
        self.rect(x, y, w, h, "fill", edge)
        self.text(x + w / 2, y + h / 2 + (5 if not below else -2), title, bold=True)
        if below:
            self.text(x + w / 2, y + h / 2 + 16, below, "soft", size=12)

    def grid(
        self,
        x: float,
        y: float,
        rows: int,
        columns: int,
        side: float,
        fill: Callable[[int, int], tuple[str, float]],
    ) -> None:
        """Cells; `fill(row, column)` gives colour and share of it."""
        self.rect(x, y, columns * side, rows * side, "fill")
        for i in range(rows):
            for j in range(columns):
                colour, share = fill(i, j)
                if share >= 0.02:
                    self.rect(x + j * side, y + i * side, side, side, colour, share=share)
        across = [f"M{x:g} {y + i * side:g}h{columns * side:g}" for i in range(rows + 1)]
        down = [f"M{x + j * side:g} {y:g}v{rows * side:g}" for j in range(columns + 1)]
        self.parts.append(f'<path d="{"".join(across + down)}" stroke="{self.palette["line"]}" fill="none"/>')

    def frame(self, x: float, y: float, w: float, h: float, colour: str = "ink") -> None:
        self.rect(x, y, w, h, "", colour)

    def svg(self) -> str:
        return "\n".join([*self.parts, "</svg>", ""])
