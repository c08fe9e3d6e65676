"""HiResCAM: activations times gradients, place by place (Draelos and Carin 2020)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tetravit.explainers.base import DETECTION, REGION, Map, Method, Request

if TYPE_CHECKING:
    from torch import Tensor

    from tetravit.models import Model


def combine(activations: Tensor, gradients: Tensor) -> Tensor:
    """Activations and gradients (C, H, W) -> the map (H, W) before its ReLU."""
    return (gradients * activations).sum(dim=0)


def hirescam(model: Model, images: Any, request: Request) -> list[Map]:
    """As Grad-CAM without the mean over the places: better where gradients differ from token to token."""
    from tetravit.explainers.parts.gradients import cam

    return cam(model, images, request, combine, "HiResCAM")


EXPLAIN = {
    "hirescam": Method(
        "HiResCAM of a class, a region or a detection; for class tokens better than Grad-CAM.",
        hirescam,
        takes=("layer", "class", "query"),
        options=(REGION, DETECTION),
        needs_gradients=True,
        source="Draelos and Carin 2020, arXiv:2011.08891",
    )
}
