"""Cross-covariance attention of XCiT: between channels, so without places; and how much each token weighs in it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from tetravit.explainers.base import Map, Method, Request, named_heads
from tetravit.predictors.base import Option

if TYPE_CHECKING:
    from tetravit.backbones import Backbone
    from tetravit.models import Model

SOURCE = "El-Nouby et al. 2021, arXiv:2106.09681"
OF = ("queries", "keys", "output")


def cross_covariance(model: Model, images: Any, request: Request) -> list[Map]:
    """The weights between the channels of each head (heads, D, D), rows for queries; by default of the last block.

    Details per head: temperature, entropy of the rows relative to the maximum, largest cosine.
    """
    from tetravit.explainers.parts.records import attention_of, inputs_of

    records = attention_of(model, images, ("channel",), request.layer)
    inputs = inputs_of(model, images, [record.layer for record in records])
    maps = []
    for record in records:
        weights = record.values[0].float().cpu()  # (heads, D, D)
        entropy = -(weights * weights.clamp(min=1e-30).log()).sum(-1).mean(-1) / math.log(weights.shape[-1])
        attn: Any = model.backbone.get_submodule(record.layer)
        cosines = attn.cosines(*inputs[record.layer])[0]
        assert record.temperature is not None
        maps.append(
            Map(
                weights,
                "attention between channels",
                record.layer,
                named_heads(len(weights)),
                axes=("query channel", "key channel"),
                normalised="rows sum to 1",
                details={
                    "temperature": record.temperature.tolist(),
                    "entropy": entropy.tolist(),
                    "largest_cosine": cosines.abs().flatten(1).amax(dim=1).tolist(),
                },
            )
        )
    return maps


def temperatures(model: Model, images: Any, request: Request) -> list[Map]:
    """The learned temperature of each head of each block (layers, heads): of the weights alone."""
    import torch

    maps = [
        (name.rpartition(".")[0], p.detach().float().cpu().flatten())
        for name, p in model.backbone.named_parameters()
        if name.endswith(".temperature")
    ]
    details = {"layers": [name for name, _ in maps]}
    table = torch.stack([values for _, values in maps])
    return [Map(table, "temperature", axes=("layer", "head"), details=details)]


def leverage(model: Model, images: Any, request: Request) -> list[Map]:
    """How much each token weighs in the attention between channels (heads, H, W); by default of the last block.

    queries, keys: mean over channels of the squared entries, after normalization over the tokens. output: norm of the
    head's contribution to each token.
    """
    from tetravit.explainers.parts.records import attention_of, inputs_of

    of = request.option("of", "queries")
    if of not in OF:
        raise ValueError(f"of takes one of {', '.join(OF)}; got {of!r}.")
    layers = [record.layer for record in attention_of(model, images, ("channel",), request.layer)]
    inputs = inputs_of(model, images, layers)
    stride = model.backbone.strides[-1]
    grid = model.backbone.grid(images.shape[2], images.shape[3])
    maps = []
    for layer in layers:
        attn: Any = model.backbone.get_submodule(layer)
        values = attn.written(*inputs[layer]) if of == "output" else attn.leverage(*inputs[layer], of)
        maps.append(
            Map(
                values[0].float().cpu().unflatten(1, grid),  # (heads, H, W)
                f"leverage of the {of}" if of != "output" else "length of the output",
                layer,
                named_heads(values.shape[1]),
                stride,
                model.backbone.centre(stride),
                normalised="" if of == "output" else "each head's values sum to 1",
            )
        )
    return maps


def _none(backbone: Backbone) -> str:
    return "" if "channel" in backbone.attention_kinds else "it has no attention between channels"


EXPLAIN = {
    "cross-covariance": Method(
        "Attention between channels: matrices, temperatures, entropies (XCiT).",
        cross_covariance,
        attention=("channel",),
        takes=("layer", "head"),
        why_not=_none,
        source=SOURCE,
    ),
    "temperatures": Method(
        "The learned temperatures of cross-covariance attention, without an image (XCiT).",
        temperatures,
        attention=("channel",),
        why_not=_none,
        needs_image=False,
        source=SOURCE,
    ),
    "leverage": Method(
        "Weight of each patch in the attention between channels (XCiT).",
        leverage,
        attention=("channel",),
        takes=("layer", "head"),
        options=(Option("of", "queries, keys or output.", "WHAT"),),
        why_not=_none,
        source="defined here; the attention is that of " + SOURCE,
    ),
}
