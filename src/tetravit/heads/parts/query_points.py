"""Sampling points of DINO-DETR's queries in the decoder, with attention weights and boxes.

Shapes: B images, Q queries, S layers of the decoder, H heads, L levels, P points per head and level.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tetravit.layers.deformable_attention import DeformableAttention


class QueryPoints(NamedTuple):
    """One entry per decoder layer, in order."""

    points: Tensor  # (S, B, Q, H, L, P, 2), x y in pixels of the model's input, counted from its corner
    weights: Tensor  # (S, B, Q, H, L, P); those of a head sum to 1


class Recorder:
    """A context that records the sampling points of deformable attention, in call order."""

    def __init__(self, layers: Sequence[nn.Module], canvas: tuple[int, int]) -> None:
        self.layers, self.canvas = layers, canvas
        self.calls: list[tuple[Tensor, Tensor]] = []

    def __enter__(self) -> "Recorder":
        self.handles = [layer.register_forward_pre_hook(self._record) for layer in self.layers]
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self.handles:
            handle.remove()

    def points(self) -> QueryPoints:
        """The records of all calls."""
        return QueryPoints(
            torch.stack([points for points, _ in self.calls]),
            torch.stack([weights for _, weights in self.calls]),
        )

    def _record(
        self, layer: nn.Module, given: tuple[Tensor, Tensor, Tensor, Sequence[tuple[int, int]]]
    ) -> None:
        assert isinstance(layer, DeformableAttention)
        query, reference, _, shapes = given[:4]
        pixels = layer.sampling_points(query, reference, shapes)  # of each level, centres at integers
        sides = pixels.new_tensor([[w, h] for h, w in shapes])[:, None]
        height, width = self.canvas
        points = (pixels + 0.5) / sides * pixels.new_tensor([width, height])
        self.calls.append((points, layer.point_weights(query)))
