"""ConViT's gates, and where its positional heads attend: from the weights alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tetravit.explainers.base import Map, Method, Request

if TYPE_CHECKING:
    from tetravit.backbones import Backbone
    from tetravit.models import Model

SOURCE = "d'Ascoli et al. 2021, arXiv:2103.10697"


def gates(model: Model, images: Any, request: Request) -> list[Map]:
    """The share of position in each head of each gated layer (layers, heads), in (0, 1)."""
    layers = _gated(model)
    backbone: Any = model.backbone
    table = backbone.gates().detach().float().cpu()
    details = {"layers": layers, "mean": table.mean(dim=1).tolist()}
    return [Map(table, "gate: share of position", axes=("layer", "head"), details=details)]


def head_centres(model: Model, images: Any, request: Request) -> list[Map]:
    """Centre, locality strength and span of each positional head, in patches, as tables (layers, heads).

    NaN if the strength is not positive: such a head has no centre.
    """
    import torch

    from tetravit.explainers.parts.attention import positional_heads

    layers = _gated(model)
    maps = [
        positional_heads(model.backbone.get_submodule(f"{name}.pos_proj").weight.detach().float().cpu())  # type: ignore[operator]
        for name in layers
    ]
    centre = torch.stack([c for c, _, _ in maps])  # (layers, heads, 2)
    tables = {
        "centre, columns to the right": centre[..., 0],
        "centre, rows down": centre[..., 1],
        "distance of the centre": centre.norm(dim=-1),
        "locality strength": torch.stack([s for _, s, _ in maps]),
        "span: standard deviation": torch.stack([d for _, _, d in maps]),
    }
    details = {"layers": layers, "unit": "patches"}
    signed = {"centre, columns to the right", "centre, rows down", "locality strength"}
    return [
        Map(table, kind, axes=("layer", "head"), signed=kind in signed, details=details)
        for kind, table in tables.items()
    ]


def _gated(model: Model) -> list[str]:
    """Names of the layers with a gate."""
    names = (name for name, _ in model.backbone.named_parameters() if name.endswith(".gating_param"))
    return [name.rpartition(".")[0] for name in names]


def _none(backbone: Backbone) -> str:
    return "" if "gated" in backbone.attention_kinds else "it has no gated positional attention"


EXPLAIN = {
    "gates": Method(
        "The gate of each head, without an image (ConViT).",
        gates,
        attention=("gated",),
        why_not=_none,
        needs_image=False,
        source=SOURCE,
    ),
    "head-centres": Method(
        "Attention centre, strength and span of positional heads, without an image (ConViT).",
        head_centres,
        attention=("gated",),
        why_not=_none,
        needs_image=False,
        source=f"{SOURCE}, eq. 5",
    ),
}
