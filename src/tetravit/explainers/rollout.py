"""Attention rollout: how much of each patch reaches the class token (Abnar and Zuidema 2020)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tetravit.explainers.base import Map, Method, Request
from tetravit.predictors.base import Option, real

if TYPE_CHECKING:
    from tetravit.backbones import Backbone
    from tetravit.models import Model

JOINS = ("mean", "max", "min")


def attention_rollout(model: Model, images: Any, request: Request) -> list[Map]:
    """The class token's row of the product of all layers' attention, each half residual (H, W)."""
    import torch

    from tetravit.explainers.parts.attention import rollout

    joined, discard = request.option("heads", "mean"), request.option("discard", 0.0)
    if joined not in JOINS:
        raise ValueError(f"heads takes one of {', '.join(JOINS)}; got {joined!r}.")
    backbone = model.backbone
    with torch.no_grad():
        values = rollout(backbone.token_attention(images), heads=joined, discard=discard)[0]
    stride = backbone.strides[-1]
    return [
        Map(
            values.float().cpu(),
            "attention rollout",
            stride=stride,
            centre=backbone.centre(stride),
            normalised="the rest to 1 lies on the class token",
            seen=values.float().cpu().sum()[None],
        )
    ]


def why_not(backbone: Backbone) -> str:
    """Why attention of such a backbone cannot be multiplied from layer to layer."""
    kinds = backbone.attention_kinds
    if "self" in kinds:
        return ""
    if "channel" in kinds:
        return "given its weights, attention between channels maps each token alone, so it mixes no tokens"
    if "summary" in kinds:
        return "tokens attend to a summary made by convolutions, so no product of weights follows a token"
    return "tokens attend within windows alone, so no product of weights follows a token through the image"


EXPLAIN = {
    "rollout": Method(
        "Attention rollout: contribution of each patch to the class token (ConViT, DeiT).",
        attention_rollout,
        options=(
            Option("heads", "How heads are combined: mean, max or min.", "HOW"),
            Option("discard", "Share of the lowest weights of each layer set to 0.", "SHARE", real),
        ),
        why_not=why_not,
        source="Abnar and Zuidema 2020, arXiv:2005.00928",
    )
}
