"""ConViT's gated positional attention of a query, split into content and position."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tetravit.explainers.base import Map, Method, Request

if TYPE_CHECKING:
    from tetravit.models import Model

KINDS = {"gated": "gated attention", "content": "content alone", "position": "position alone"}


def gated_attention(model: Model, images: Any, request: Request) -> list[Map]:
    """The attention of one patch to all, its content and its position alone (heads, H, W); the last gated layer.

    The default query is the patch in the middle, as in the paper.
    """
    from tetravit.explainers.parts.records import attention_of, token

    maps = []
    for record in attention_of(model, images, ("gated", "content", "position"), request.layer):
        place = token(model, images, record, request.query)
        values = record.query(*place)[0].float().cpu()
        assert record.gate is not None
        gates = record.gate.tolist()
        maps.append(
            Map(
                values,
                KINDS[record.kind],
                record.layer,
                tuple(f"head {i}, gate {gate:.2f}" for i, gate in enumerate(gates)),
                record.stride,
                record.centre,
                normalised="each head's values sum to 1",
                query=place,
                details={"gate": gates},
            )
        )
    return maps


EXPLAIN = {
    "gated-attention": Method(
        "Gated attention of one patch, with its content and position parts (ConViT).",
        gated_attention,
        attention=("gated",),
        takes=("layer", "head", "query"),
        why_not=lambda b: "" if "gated" in b.attention_kinds else "it has no gated positional attention",
        source="d'Ascoli et al. 2021, arXiv:2103.10697, Figs. 3, 7, 16, 17",
    )
}
