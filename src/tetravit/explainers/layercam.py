"""LayerCAM: activations times positive gradients, place by place (Jiang et al. 2021)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tetravit.explainers.base import DETECTION, REGION, Map, Method, Request

if TYPE_CHECKING:
    from torch import Tensor

    from tetravit.models import Model


def combine(activations: Tensor, gradients: Tensor) -> Tensor:
    """Activations and gradients (C, H, W) -> the map (H, W) before its ReLU."""
    return (gradients.relu() * activations).sum(dim=0)


def layercam(model: Model, images: Any, request: Request) -> list[Map]:
    """As HiResCAM with positive gradients alone."""
    from tetravit.explainers.parts.gradients import cam

    return cam(model, images, request, combine, "LayerCAM")


EXPLAIN = {
    "layercam": Method(
        "LayerCAM of a class, a region or a detection.",
        layercam,
        takes=("layer", "class", "query"),
        options=(REGION, DETECTION),
        needs_gradients=True,
        source="Jiang et al. 2021, IEEE TIP, LayerCAM",
    )
}
