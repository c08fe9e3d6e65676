"""Score-CAM: channels of a layer weighed by the score of the image masked with them (Wang et al. 2020)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tetravit.explainers.base import DETECTION, REGION, Map, Method, Request
from tetravit.predictors.base import Option, whole

if TYPE_CHECKING:
    from tetravit.models import Model

AT_ONCE = 16  # masked images per call of the model


def scorecam(model: Model, images: Any, request: Request) -> list[Map]:
    """The weighted sum of the channels (H, W), its positive part. One pass of the model per channel.

    Masks multiply the normalized image, so that 0 is the mean colour. For dense models the default layer is the
    deepest map.
    """
    import torch

    from tetravit.explainers.parts.gradients import layers
    from tetravit.explainers.parts.targets import target_of
    from tetravit.explainers.parts.view import whole_input
    from tetravit.models import Classifier

    target = target_of(model, images, request)
    wanted = request.layer
    if wanted is None and not isinstance(model, Classifier):
        wanted = "feature_maps.3"
    limit = request.option("channels")
    if limit is not None and limit < 1:
        raise ValueError(f"channels is 1 or more; got {limit!r}.")
    maps = []
    for layer in layers(model, images, target, wanted):
        order = layer.gradients.mean(dim=(1, 2)).abs().argsort(descending=True)[:limit]
        channels = layer.activations[order]
        request.announce(f"scorecam: {len(channels)} passes of the model for {layer.name}.")
        spread = channels.flatten(1).amax(dim=1) - channels.flatten(1).amin(dim=1)
        channels = channels[spread > 0]
        view = whole_input((images.shape[2], images.shape[3]))
        empty = float(target.without_gradients(torch.zeros_like(images))[0])
        scores = []
        for part in channels.split(AT_ONCE):
            place = Map(part, "", stride=layer.stride, centre=layer.centre)
            masks, _ = view.paint(place)  # (n, Hi, Wi)
            low, high = masks.flatten(1).amin(dim=1), masks.flatten(1).amax(dim=1)
            masks = (masks - low[:, None, None]) / (high - low).clamp(min=1e-12)[:, None, None]
            masked = images * masks[:, None].to(images.device, images.dtype)
            scores.append(target.without_gradients(masked).float().cpu() - empty)
        weights = torch.cat(scores).softmax(dim=0) if scores else torch.zeros(0)
        raw = (weights[:, None, None] * channels).sum(dim=0)
        details = {"score": target.score, "channels": len(channels)}
        place = Map(raw.relu(), "Score-CAM", layer.name, stride=layer.stride, centre=layer.centre)
        maps.append(place.with_target(target.name, details, target.place))
    return maps


EXPLAIN = {
    "scorecam": Method(
        "Score-CAM of a class, a region or a detection: a pass of the model per channel.",
        scorecam,
        takes=("layer", "class", "query"),
        options=(
            Option("channels", "Only the N channels with the largest mean gradient.", "N", whole),
            REGION,
            DETECTION,
        ),
        needs_gradients=True,
        source="Wang et al. 2020, arXiv:1910.01279",
    )
}
