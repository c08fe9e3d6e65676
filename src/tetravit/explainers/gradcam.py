"""Grad-CAM: channels of a layer weighed by the mean gradient of the score (Selvaraju et al. 2017)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tetravit.explainers.base import DETECTION, REGION, Map, Method, Request

if TYPE_CHECKING:
    from torch import Tensor

    from tetravit.models import Model


def combine(activations: Tensor, gradients: Tensor) -> Tensor:
    """Activations and gradients (C, H, W) -> the map (H, W) before its ReLU."""
    return (gradients.mean(dim=(1, 2))[:, None, None] * activations).sum(dim=0)


def gradcam(model: Model, images: Any, request: Request) -> list[Map]:
    """Of a classifier by default at `backbone.cam_layer`; of dense models the mean over the backbone's four maps.

    For heads that are linear in the mean of the patches (GC ViT, Twins), the map before its ReLU is the class
    activation map of Zhou et al. 2016: its sum is the logit minus its bias.
    """
    from tetravit.explainers.parts.gradients import cam

    return cam(model, images, request, combine, "Grad-CAM")


EXPLAIN = {
    "gradcam": Method(
        "Grad-CAM of a class, a region or a detection.",
        gradcam,
        takes=("layer", "class", "query"),
        options=(REGION, DETECTION),
        needs_gradients=True,
        source="Selvaraju et al. 2017, arXiv:1610.02391",
    )
}
