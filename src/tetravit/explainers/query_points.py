"""Where the query of a detection attends: the sampling points of DINO-DETR's decoder (arXiv:2203.03605)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tetravit.explainers.base import Map, Method, Request, chosen, named_heads
from tetravit.predictors.base import Option, whole

if TYPE_CHECKING:
    from torch import Tensor

    from tetravit.models import Model

CELL = 4  # pixels: side of the cells over which weights are summed


def query_points(model: Model, images: Any, request: Request) -> list[Map]:
    """The weights of the sampling points of one detection's query, summed in cells of 4 pixels, one map per head.

    Default: the last layer of the decoder; layers are numbered from 0. `details` has every point and the box of the
    query before and after each layer, in pixels of the model's input.
    """
    import torch

    from tetravit.explainers.parts.targets import DetectionTarget
    from tetravit.heads.dino_detr import DinoDETR
    from tetravit.models import Detector
    from tetravit.models.detector import pad

    head = model.head
    assert isinstance(model, Detector)
    if not isinstance(head, DinoDETR):
        raise ValueError(
            f"query-points needs a head with queries, dino_detr; {model.name} has {model.head_name}."
        )
    target = DetectionTarget(model, images, request.class_, request.option("detection"))
    with torch.no_grad():
        outputs, where = head.attention_points(model.feature_maps(pad(images)), target.sizes)
        queries, boxes = head.steps(outputs, target.sizes)
    query = int(queries[0, target.index])
    names = [f"transformer.decoder.layers.{i}.cross_attn" for i in range(len(where.points))]
    maps = []
    for name in chosen(names, request.layer, names[-1:]):
        layer = names.index(name)
        points, weights = where.points[layer, 0, query], where.weights[layer, 0, query]
        values = rasterised(points.flatten(1, 2), weights.flatten(1, 2), images.shape[2], images.shape[3])
        details = {
            "query": query,
            "boxes": [[round(x, 2) for x in box] for box in boxes[:, 0, target.index].tolist()],
            "points": points.tolist(),
            "weights": weights.tolist(),
        }
        maps.append(
            Map(
                values.cpu(),
                "weights of the sampling points of a query",
                name,
                named_heads(len(values)),
                CELL,
                (CELL - 1) / 2,
                normalised="each head's values sum to `seen`; the other points lie outside the picture",
                seen=values.sum(dim=(1, 2)).cpu(),
                target=target.name,
                details=details,
                samples=torch.cat((points, weights[..., None]), dim=-1).flatten(1, 2).float().cpu(),
                box=tuple(boxes[layer, 0, target.index].tolist()),
            )
        )
    return maps


def rasterised(points: Tensor, weights: Tensor, height: int, width: int) -> Tensor:
    """Points (H, n, 2), x y in pixels from the corner, and weights (H, n) -> sums (H, rows, columns) of cells."""
    rows, columns = -(-height // CELL), -(-width // CELL)
    x, y = points.float().unbind(-1)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    cell = (y / CELL).long().clamp(0, rows - 1) * columns + (x / CELL).long().clamp(0, columns - 1)
    sums = weights.new_zeros(len(points), rows * columns)
    return sums.scatter_add_(1, cell, weights * inside).view(-1, rows, columns)


EXPLAIN = {
    "query-points": Method(
        "Sampling points of the query of a detection (DINO-DETR).",
        query_points,
        kinds=("detect",),
        heads=("dino_detr",),
        takes=("layer", "head", "class"),
        options=(Option("detection", "Which detection, from 0, the best first.", "N", whole),),
        source="Zhang et al. 2023, arXiv:2203.03605; Zhu et al. 2021, arXiv:2010.04159",
    )
}
