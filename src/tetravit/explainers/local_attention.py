"""Attention within windows: GC ViT's local attention, Twins' LSA."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from tetravit.explainers.base import Map, Method, Request, named_heads

if TYPE_CHECKING:
    from tetravit.models import Model


def local_attention(model: Model, images: Any, request: Request) -> list[Map]:
    """The attention of one token to the tokens of its window (heads, H, W), 0 outside; by default the last layer.

    The default query is the token in the middle. Attention to the padding of a window is missing in `seen`.
    """
    from tetravit.explainers.parts.records import attention_of, token

    maps = []
    for record in attention_of(model, images, ("window",), request.layer):
        place = token(model, images, record, request.query)
        values = record.query(*place)[0].float().cpu()
        assert record.windows is not None
        side = math.isqrt(record.values.shape[-1])
        window = place[0] // side * record.windows[1] + place[1] // side
        seen = record.seen[0, window, :, place[0] % side * side + place[1] % side].float().cpu()
        maps.append(
            Map(
                values,
                "attention within the window",
                record.layer,
                named_heads(len(values)),
                record.stride,
                record.centre,
                normalised="each head's values sum to `seen`; the rest lies on padding",
                seen=seen,
                query=place,
            )
        )
    return maps


EXPLAIN = {
    "local-attention": Method(
        "Attention of one token within its window (GC ViT; Twins-SVT, LSA).",
        local_attention,
        attention=("window",),
        takes=("layer", "head", "query"),
        why_not=lambda b: "" if "window" in b.attention_kinds else "it has no attention within windows",
        source="Hatamizadeh et al. 2023, arXiv:2206.09959; Chu et al. 2021, arXiv:2104.13840",
    )
}
