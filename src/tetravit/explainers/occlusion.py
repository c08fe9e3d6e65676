"""Occlusion: how much the score drops where a square of the image is hidden (Zeiler and Fergus 2014)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tetravit.explainers.base import DETECTION, REGION, Map, Method, Request
from tetravit.predictors.base import Option, whole

if TYPE_CHECKING:
    from tetravit.models import Model

AT_ONCE = 16  # images per call of the model


def occlusion(model: Model, images: Any, request: Request) -> list[Map]:
    """The mean drop of the score over the squares that cover a place; below 0: the score rises.

    Squares at a stride of half their side, filled with the mean colour. Needs no gradients. For a detection the score
    is the maximum of score times IoU over the detections of its class.
    """
    import torch

    from tetravit.explainers.parts.targets import target_of

    target = target_of(model, images, request)
    height, width = images.shape[2:]
    square = request.option("square", max(2, round(min(height, width) / 7)))
    if not 2 <= square <= min(height, width):
        raise ValueError(f"square is 2 to {min(height, width)} pixels; got {square}.")
    step = square // 2
    rows, columns = (-(-side // step) for side in (height, width))
    corners = [(y, x) for y in range(max(1, rows - 1)) for x in range(max(1, columns - 1))]
    request.announce(f"occlusion: {len(corners)} passes of the model.")
    whole_score = float(target.without_gradients(images)[0])
    total, count = torch.zeros(rows, columns), torch.zeros(rows, columns)
    for start in range(0, len(corners), AT_ONCE):
        part = corners[start : start + AT_ONCE]
        hidden = images.repeat(len(part), 1, 1, 1)
        for image, (y, x) in zip(hidden, part, strict=True):
            image[:, y * step : (y + 2) * step, x * step : (x + 2) * step] = 0
        drops = whole_score - target.without_gradients(hidden).float().cpu()
        for drop, (y, x) in zip(drops, part, strict=True):
            total[y : y + 2, x : x + 2] += drop
            count[y : y + 2, x : x + 2] += 1
    return [
        Map(
            total / count,
            "drop of the score where hidden",
            stride=step,
            centre=(step - 1) / 2,
            target=target.name,
            box=target.place,
            signed=True,
            details={"score": whole_score, "square": 2 * step},
        )
    ]


EXPLAIN = {
    "occlusion": Method(
        "Drop of a score when a square is occluded: classes, regions, detections.",
        occlusion,
        takes=("class", "query"),
        options=(
            Option("square", "Side of the square; a seventh of the image by default.", "PX", whole),
            REGION,
            DETECTION,
        ),
        any_form=True,
        source="Zeiler and Fergus 2014, arXiv:1311.2901",
    )
}
