"""GC ViT's global attention: queries of the whole image, the same for all windows."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tetravit.explainers.base import Map, Method, Request, named_heads
from tetravit.predictors.base import Option

if TYPE_CHECKING:
    from torch import Tensor

    from tetravit.models import Model
    from tetravit.structures import AttentionMap

ACROSS = "One softmax over all windows: a map of the whole image, not what the network computes."


def global_query_attention(model: Model, images: Any, request: Request) -> list[Map]:
    """How much each token is attended to by the global queries of its window (heads, H, W).

    Mean over the queries, or with a query that of the global query at the same position in the window. The values of
    each window sum to 1, so they are comparable within a window; at 224 pixels one window covers the image in stages
    3 and 4. Default: the last such layer of stage 3. The protocol of the paper's figures was never published.
    """
    from tetravit.explainers.base import chosen
    from tetravit.explainers.parts.records import attention_of, inputs_of, layers_of, token

    names = layers_of(model, ("global",))
    third = [name for name in names if name.startswith("levels.2.")] or names
    layers = chosen(names, request.layer, third[-1:])
    across = request.option("across_windows", False)
    inputs = inputs_of(model, images, layers) if across else {}
    maps = []
    for record in attention_of(model, images, ("global",), ",".join(layers)):
        if across:
            record = _across(model, record, inputs[record.layer])
        place = None if request.query is None else token(model, images, record, request.query)
        values = record.mean_over_queries()[0] if place is None else record.query(*place)[0]
        normalised = "the values of each window and head sum to 1, where it is not padded"
        maps.append(
            Map(
                values.float().cpu(),
                "global-query attention" + (", one softmax over all windows" if across else ""),
                record.layer,
                named_heads(len(values)),
                record.stride,
                record.centre,
                normalised="each head's values sum to 1" if across else normalised,
                query=place,
                details={"windows": list(record.windows or ())},
            )
        )
    return maps


def _across(model: Model, record: AttentionMap, inputs: tuple[Tensor, ...]) -> AttentionMap:
    """The record with one softmax over the keys of all windows of the image, padding left out."""
    import torch

    from tetravit.layers.window import padding

    attn: Any = model.backbone.get_submodule(record.layer)
    with torch.no_grad():
        q, k, _ = attn.heads(inputs[0], inputs[1])
        scores = (q @ k.mT * q.shape[-1] ** -0.5 + attn.bias(q.dtype)).float()  # (nW, heads, N, N)
        side = math.isqrt(scores.shape[-1])
        below, right = padding(inputs[0], side, record.grid)
        scores = scores.masked_fill((below | right)[:, None, None], -math.inf)
        scores = scores.permute(1, 2, 0, 3)  # (heads, N, nW, N)
        weights = scores.flatten(2).softmax(dim=-1).view(scores.shape).permute(2, 0, 1, 3)
    return replace(record, values=weights[None])


EXPLAIN = {
    "global-query-attention": Method(
        "Attention of the global queries to each token (GC ViT).",
        global_query_attention,
        attention=("global",),
        takes=("layer", "head", "query"),
        options=(Option("across_windows", ACROSS),),
        why_not=lambda b: "" if "global" in b.attention_kinds else "it has no global queries",
        source="Hatamizadeh et al. 2023, arXiv:2206.09959; which layer and mean is defined here",
    )
}
