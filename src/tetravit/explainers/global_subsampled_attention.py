"""Global sub-sampled attention (GSA) of Twins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tetravit.explainers.base import Map, Method, Request, named_heads

if TYPE_CHECKING:
    from tetravit.models import Model


def global_subsampled_attention(model: Model, images: Any, request: Request) -> list[Map]:
    """The attention of one token to the tiles of the map (heads, H, W); without a query the mean over all tokens.

    Default: the last layer. Remaining rows and columns of tokens belong to no tile and have no value.
    """
    from tetravit.explainers.parts.records import attention_of, places_of_queries, token

    maps = []
    for record in attention_of(model, images, ("summary",), request.layer):
        place = None if request.query is None else token(model, images, record, request.query)
        values = record.mean_over_queries()[0] if place is None else record.query(*place)[0]
        kind = "global sub-sampled attention" + (", mean over tokens" if place is None else "")
        stride, centre = places_of_queries(model, images, record)
        maps.append(
            Map(
                values.float().cpu(),
                kind,
                record.layer,
                named_heads(len(values)),
                record.stride,
                record.centre,
                normalised="each head's values sum to 1",
                query=place,
                query_stride=stride,
                query_centre=centre,
            )
        )
    return maps


EXPLAIN = {
    "global-subsampled-attention": Method(
        "Attention of a token, or of all, to the tiles of the map (Twins, GSA).",
        global_subsampled_attention,
        attention=("summary",),
        takes=("layer", "head", "query"),
        why_not=lambda b: "" if "summary" in b.attention_kinds else "it has no global sub-sampled attention",
        source="Chu et al. 2021, arXiv:2104.13840",
    )
}
