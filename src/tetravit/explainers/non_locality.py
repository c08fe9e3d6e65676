"""Over what distance each head attends: ConViT's non-locality, as the paper defines it and as its code logs it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tetravit.explainers.base import Map, Method, Request
from tetravit.predictors.base import Option

if TYPE_CHECKING:
    from tetravit.backbones import Backbone
    from tetravit.models import Model

FORMS = ("corrected", "legacy", "both")


def non_locality(model: Model, images: Any, request: Request) -> list[Map]:
    """Mean distances in patches (layers, heads).

    corrected: of the attention of each layer for its own input (eq. 8). legacy: as logged by the authors' code, with
    the raw patch embedding as input of every layer. `ratio` is relative to uniform attention, to compare grids.
    """
    import torch

    from tetravit.explainers.parts.attention import (
        distances_and_mass,
        legacy_non_locality,
        uniform_non_locality,
    )

    form = request.option("form", "both")
    if form not in FORMS:
        raise ValueError(f"form takes one of {', '.join(FORMS)}; got {form!r}.")
    backbone: Any = model.backbone
    layers, rows, on_class = [], [], []
    grid = (0, 0)
    with torch.no_grad():
        for record in backbone.token_attention(images):
            grid = record.grid
            layers.append(record.layer)
            row, outside = distances_and_mass(record)
            rows.append(row)
            on_class.append(outside)
        tables = {"corrected": torch.stack(rows)} if form != "legacy" else {}
        if form != "corrected":
            tables["legacy"] = legacy_non_locality(backbone, images)
    uniform = uniform_non_locality(grid)
    maps = []
    for name, table in tables.items():
        means = table.float().cpu().mean(dim=1)
        details: dict[str, Any] = {"form": name, "layers": layers, "mean": means.tolist()}
        details |= {"uniform": uniform, "ratio": (means / uniform).tolist()}
        if name == "corrected":
            details["mass_on_class_token"] = on_class
        maps.append(
            Map(table.float().cpu(), f"non-locality, {name}", axes=("layer", "head"), details=details)
        )
    return maps


def _none(backbone: Backbone) -> str:
    return (
        "" if "self" in backbone.attention_kinds else "its patches do not attend to all patches of one grid"
    )


EXPLAIN = {
    "non-locality": Method(
        "Mean attention distance of each head, corrected and legacy (ConViT, DeiT).",
        non_locality,
        attention=("gated", "self"),
        options=(Option("form", "corrected, legacy or both.", "FORM"),),
        why_not=_none,
        source="d'Ascoli et al. 2021, arXiv:2103.10697, eq. 8",
    )
}
