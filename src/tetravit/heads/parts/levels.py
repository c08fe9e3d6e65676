"""Several feature maps as one row of tokens: padding, positions, reference points and proposals of every token.

Images lie in the upper left corner of a padded canvas. A token is padding where its upper left pixel is.

Shapes: B images, L levels, (h, w) a level, N tokens of all levels: one level after another, row by row.
Source: IDEA-Research/DINO@faa8520 models/dino/position_encoding.py, deformable_transformer.py, utils.py.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

TEMPERATURE = 20.0  # of the positions of tokens, on both axes
EDGE = 0.01  # proposals whose centre or side is nearer to 0 or 1 are not used
SIDE = 0.05  # of a proposal on the finest level; twice as much on each coarser one


@dataclass(frozen=True)
class Levels:
    """Sizes and padding of the tokens of all levels.

    shapes: (height, width) of every level. rows, columns: per level (B, h) and (B, w) bool, True inside the image.
    """

    shapes: list[tuple[int, int]]
    rows: list[Tensor]
    columns: list[Tensor]

    @classmethod
    def of(cls, maps: Sequence[Tensor], canvas: tuple[int, int], sizes: Tensor | None) -> "Levels":
        """Of maps (B, C, h, w) of a canvas (height, width) in pixels.

        sizes: (B, 2), height and width of the images, at least one pixel; None: they fill the canvas.
        """
        shapes = [(x.shape[2], x.shape[3]) for x in maps]
        inside: tuple[list[Tensor], list[Tensor]] = ([], [])
        for shape in shapes:
            for axis in (0, 1):
                at = torch.arange(shape[axis], device=maps[0].device)
                pixel = at * canvas[axis] // shape[axis]
                if sizes is None:
                    inside[axis].append((pixel >= 0).expand(maps[0].shape[0], -1))
                else:
                    inside[axis].append(pixel < sizes[:, axis : axis + 1].clamp(min=1))
        return cls(shapes, *inside)

    def padding(self) -> Tensor:
        """(B, N) bool, True where a token is padding."""
        inside = [(rows[:, :, None] & columns[:, None]).flatten(1) for rows, columns in self]
        return ~torch.cat(inside, dim=1)

    def ratios(self) -> Tensor:
        """(B, L, 2): the share of the width and of the height that is inside."""
        return torch.stack(
            [torch.stack((columns.float().mean(1), rows.float().mean(1)), dim=1) for rows, columns in self],
            dim=1,
        )

    def positions(self, dim: int) -> Tensor:
        """Sine positions (B, N, dim): half of the channels for y, half for x, one period over the image."""
        parts = []
        for rows, columns in self:
            y, x = (_sine_table(inside, dim // 2) for inside in (rows, columns))
            nowhere = torch.arange(dim // 2, device=y.device).remainder(2).float()  # sin 0, cos 0
            y = torch.where(columns[:, None, :, None], y[:, :, None], nowhere)  # (B, h, w, dim / 2)
            x = torch.where(rows[:, :, None, None], x[:, None, :], nowhere)
            parts.append(torch.cat((y, x), dim=3).flatten(1, 2))
        return torch.cat(parts, dim=1)

    def references(self) -> Tensor:
        """(B, N, L, 2): where each token lies on every level, x y in shares of the level."""
        centres = torch.cat(
            [_grid(*self._centres(i, of_canvas=True)) for i in range(len(self.shapes))], dim=1
        )
        return centres[:, :, None] * self.ratios()[:, None]

    def proposals(self) -> tuple[Tensor, Tensor]:
        """A square box at every token: logits (B, N, 4) of cx cy w h, infinite where not used; (B, N) bool, used."""
        parts = []
        for i in range(len(self.shapes)):
            centres = _grid(*self._centres(i, of_canvas=False))  # (B, h * w, 2)
            parts.append(torch.cat((centres, torch.full_like(centres, SIDE * 2**i)), dim=2))
        boxes = torch.cat(parts, dim=1)
        used = ((boxes > EDGE) & (boxes < 1 - EDGE)).all(dim=2) & ~self.padding()
        logits = (boxes / (1 - boxes)).log()
        return logits.masked_fill(~used[..., None], math.inf), used

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(self.rows, self.columns, strict=True)

    def _centres(self, i: int, *, of_canvas: bool) -> tuple[Tensor, Tensor]:
        """Centres of rows (B, h) and columns (B, w) of a level, in shares of what is inside.

        of_canvas: divide by the share that is inside times the side, as the authors do for reference points, rather
        than by the number of rows that are inside: the same but for rounding.
        """
        centres = []
        for inside, side in zip((self.rows[i], self.columns[i]), self.shapes[i], strict=True):
            at = torch.arange(side, device=inside.device) + 0.5
            inside = inside.float()
            length = inside.mean(1) * side if of_canvas else inside.sum(1)
            centres.append(at / length[:, None])
        return centres[0], centres[1]


def sine_embedding(boxes: Tensor, dim: int) -> Tensor:
    """Sines and cosines of coordinates in 0..1: (..., 2 or 4), x y w h -> (..., dim per coordinate), y x w h."""
    order = [1, 0, 2, 3][: boxes.shape[-1]]
    angles = boxes[..., order, None] * (2 * math.pi) / _frequencies(dim, 10000.0, boxes)
    return _interleaved(angles).flatten(-2)


def _sine_table(inside: Tensor, dim: int) -> Tensor:
    """Sine positions (B, n, dim) along an axis; `inside` (B, n) bool."""
    count = inside.cumsum(1, dtype=torch.float32)
    angles = count / (count[:, -1:] + 1e-6) * (2 * math.pi)
    return _interleaved(angles[..., None] / _frequencies(dim, TEMPERATURE, angles))


def _frequencies(dim: int, temperature: float, like: Tensor) -> Tensor:
    pair = torch.arange(dim, device=like.device).div(2, rounding_mode="floor").float()
    return temperature ** (2 * pair / dim)


def _interleaved(angles: Tensor) -> Tensor:
    """sin of the even entries, cos of the odd ones, in their places."""
    return torch.stack((angles[..., 0::2].sin(), angles[..., 1::2].cos()), dim=-1).flatten(-2)


def _grid(rows: Tensor, columns: Tensor) -> Tensor:
    """Rows (B, h), columns (B, w) -> points x y (B, h * w, 2)."""
    height, width = rows.shape[1], columns.shape[1]
    x = columns[:, None].expand(-1, height, -1)
    y = rows[:, :, None].expand(-1, -1, width)
    return torch.stack((x, y), dim=3).flatten(1, 2)
