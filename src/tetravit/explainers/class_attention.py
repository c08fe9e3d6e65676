"""Attention of the class token to the patches: the attention maps of the XCiT paper and of DINO's videos."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tetravit.explainers.base import Map, Method, Request, named_heads
from tetravit.predictors.base import Option

if TYPE_CHECKING:
    from tetravit.models import Model


def class_attention(model: Model, images: Any, request: Request) -> list[Map]:
    """The class token's row of a layer, one map per head; by default of the last layer.

    XCiT has two such layers, `class_blocks.0.attn` and `class_blocks.1.attn`; ConViT's class token is present in the
    last two layers, DeiT's in all.
    """
    from tetravit.explainers.parts.records import attention_of

    maps = []
    for record in attention_of(model, images, ("class",), request.layer):
        values, seen = record.values[0].float(), record.seen[0].float()
        normalised = "each head's values sum to `seen`; the rest lies on the class token"
        if request.option("renormalise", False):
            values, normalised = values / seen[:, None, None], "each head's values sum to 1"
        maps.append(
            Map(
                values.cpu(),
                "attention of the class token",
                record.layer,
                named_heads(len(values)),
                record.stride,
                record.centre,
                normalised=normalised,
                seen=seen.cpu(),
            )
        )
    return maps


EXPLAIN = {
    "class-attention": Method(
        "Attention of the class token to the patches (XCiT, ConViT, DeiT).",
        class_attention,
        attention=("class",),
        takes=("layer", "head"),
        options=(Option("renormalise", "Divide each head's map by its sum over the patches."),),
        why_not=lambda backbone: "" if "class" in backbone.attention_kinds else "it has no class token",
        source="El-Nouby et al. 2021, arXiv:2106.09681; Caron et al. 2021, arXiv:2104.14294",
    )
}
