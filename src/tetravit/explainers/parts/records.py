"""Attention records of the layers that a request names."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from tetravit.explainers.base import chosen
from tetravit.models import Model
from tetravit.structures import AttentionKind, AttentionMap


@torch.no_grad()
def attention_of(
    model: Model, images: Tensor, kinds: Sequence[AttentionKind], layer: str | int | None
) -> list[AttentionMap]:
    """The records of some layers, in order of depth; None: of the last layer that has one.

    Raises:
        ValueError: if there is no such layer.
    """
    names = layers_of(model, kinds)
    wanted = chosen(names, layer, names[-1:])
    return [
        record for record in model.backbone.attention_layers(images, kinds=kinds) if record.layer in wanted
    ]


def layers_of(model: Model, kinds: Sequence[AttentionKind]) -> list[str]:
    """Names of the layers with attention of some kinds, in order of depth: by a pass over the smallest image."""
    backbone = model.backbone
    like = next(backbone.parameters())
    with torch.no_grad():
        small = like.new_zeros(1, backbone.in_chans, 32, 32)
        records = list(backbone.attention_layers(small, kinds=kinds))
    return list(dict.fromkeys(record.layer for record in records))


@torch.no_grad()
def inputs_of(model: Model, images: Tensor, layers: Sequence[str]) -> dict[str, tuple[Tensor, ...]]:
    """The arguments with which some modules of the backbone are called for images, by name."""
    inputs: dict[str, tuple[Tensor, ...]] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            inputs[name] = args

        return hook

    with ExitStack() as stack:
        for name in layers:
            handle = model.backbone.get_submodule(name).register_forward_pre_hook(keep(name))
            stack.callback(handle.remove)
        model.backbone(images)
    return inputs


def places_of_queries(model: Model, images: Tensor, record: AttentionMap) -> tuple[float, float]:
    """Stride and centre of the queries of a record in pixels of the model's input."""
    if record.query_grid is None:
        return float(record.stride), record.centre
    rows = record.query_grid[0]  # keys are tiles of tokens
    stride = next(s for s in model.backbone.strides if images.shape[2] // s == rows)
    return float(stride), model.backbone.centre(stride)


def token(
    model: Model, images: Tensor, record: AttentionMap, query: tuple[float, float] | None
) -> tuple[int, int]:
    """The row and column of the query at x, y in pixels of the model's input; None: the token at the centre."""
    rows, columns = record.query_grid or record.grid
    if query is None:
        return rows // 2, columns // 2
    stride, centre = places_of_queries(model, images, record)
    row, column = (round((value - centre) / stride) for value in (query[1], query[0]))
    return min(max(row, 0), rows - 1), min(max(column, 0), columns - 1)
