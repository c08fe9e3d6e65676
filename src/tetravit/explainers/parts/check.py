"""Sanity checks of a map: deletion and insertion, a pointing game, a model with a randomised head.

Shapes: (Hi, Wi) the model's input, (H0, W0) the picture.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tetravit.explainers.base import Map, Request
from tetravit.explainers.parts.explanation import Explanation
from tetravit.explainers.parts.targets import Target, target_of
from tetravit.explainers.parts.view import whole_input
from tetravit.models import Classifier, Model

STEPS = 32  # points of a curve
AT_ONCE = 11  # images per call of the model
ORDERS = ("map", "random", "centre")


def checked(
    model: Model,
    e: Explanation,
    request: Request,
    *,
    again: Callable[[Model], Map],
    boxes: Sequence[Sequence[float]] = (),
    mask: np.ndarray | None = None,
) -> Explanation:
    """The explanation with figures of its first map in `check`.

    deletion, insertion: area under the probability of the target while pixels are replaced by the mean colour, or
    inserted, in the order of the map, in a random order and by distance from the centre, in 32 steps (Petsiuk et al.
    2018, arXiv:1806.07421). A good map is below the random order in deletion and above it in insertion. For
    detections the probability is that of the best match.
    pointing, energy: with boxes (x1, y1, x2, y2) or a mask (H0, W0) of the picture: whether the maximum lies inside,
        and the share of the positive values inside; `area` is the share of the picture covered.
    randomised: rank correlation with the map of the same model with a randomly initialised head (Adebayo et al. 2018,
        arXiv:1810.03292); near 1 the map does not depend on the class. Classifiers only.
    again: the first map of another model for the same image and target.
    """
    one = e.maps[0].mean()
    if not one.has_places or e.view is None or e.input is None:
        raise ValueError(f"The maps of {e.method} have no places in the picture: there is nothing to check.")
    like = next(model.parameters())
    images = e.input[None].to(like.device, like.dtype)
    target = target_of(model, images, replace(request, query=None) if model.kind != "segment" else request)
    figures: dict[str, Any] = {"target": target.name, "steps": STEPS}
    for name in ("deletion", "insertion"):
        curves = {order: curve(target, images, ranking(one, e, order), name) for order in ORDERS}
        figures[name] = {order: round(area(values), 6) for order, values in curves.items()}
        figures[f"{name}_curves"] = {order: [round(v, 6) for v in values] for order, values in curves.items()}
    if boxes or mask is not None:
        figures |= pointing(e, boxes, mask)
    if isinstance(model, Classifier) and model.num_classes:
        figures["randomised"] = round(rank_correlation(one.values, again(other_head(model)).values), 4)
    return replace(e, check=figures)


def ranking(one: Map, e: Explanation, order: str) -> Tensor:
    """The pixels of the model's input, the first to be deleted first (Hi * Wi,)."""
    assert e.view is not None
    height, width = e.view.sides
    if order == "random":
        return torch.randperm(height * width, generator=torch.Generator().manual_seed(0))
    if order == "centre":
        y, x = torch.arange(height) - (height - 1) / 2, torch.arange(width) - (width - 1) / 2
        return (y[:, None] ** 2 + x**2).flatten().argsort(stable=True)
    values, defined = whole_input((height, width)).paint(one)
    return torch.where(defined, values, -math.inf).flatten().argsort(descending=True, stable=True)


def curve(target: Target, images: Tensor, order: Tensor, name: str) -> list[float]:
    """The probability of the target after each step of deletion or insertion, from none to all pixels."""
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    place = place.view(images.shape[2:]).to(images.device)
    values: list[float] = []
    for start in range(0, STEPS + 1, AT_ONCE):
        counts = [round(len(order) * i / STEPS) for i in range(start, min(start + AT_ONCE, STEPS + 1))]
        taken = torch.stack([place < count for count in counts])[:, None]
        kept = taken if name == "insertion" else ~taken
        values += target.probability(images * kept.to(images.dtype)).float().tolist()
    return values


def area(values: Sequence[float]) -> float:
    """The area under a curve over [0, 1], by trapezia."""
    return float(np.trapezoid(values, dx=1 / (len(values) - 1)))


def pointing(e: Explanation, boxes: Sequence[Sequence[float]], mask: np.ndarray | None) -> dict[str, Any]:
    """The pointing game and the energy inside of boxes or a mask of the picture."""
    assert e.view is not None
    values = np.nan_to_num(e.on_picture())
    inside = np.zeros(values.shape, bool)
    if mask is not None:
        if mask.shape != values.shape:
            raise ValueError(
                f"The mask has {mask.shape[1]} x {mask.shape[0]} pixels; the picture has"
                f" {values.shape[1]} x {values.shape[0]}."
            )
        inside |= mask
    for box in boxes:
        x1, y1, x2, y2 = (round(v) for v in box)
        if not (0 <= x1 < x2 <= values.shape[1] and 0 <= y1 < y2 <= values.shape[0]):
            raise ValueError(
                f"A box is x1,y1,x2,y2 in a picture of {values.shape[1]} x {values.shape[0]} pixels; got"
                f" {','.join(f'{v:g}' for v in box)}."
            )
        inside[y1:y2, x1:x2] = True
    positive = np.clip(values, 0, None)
    return {
        "pointing": bool(inside.flat[int(values.argmax())]),
        "energy": round(float(positive[inside].sum() / max(float(positive.sum()), 1e-30)), 4),
        "area": round(float(inside.mean()), 4),
    }


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's rank correlation of two maps; 0 where one is constant."""
    ranks = [x.flatten().double().argsort().argsort().double() for x in (a, b)]
    if any(float(x.max()) == float(x.min()) for x in (a, b)):
        return 0.0
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])


def other_head(model: Classifier) -> Classifier:
    """A copy with a fresh head, the same each time."""
    names = model.class_names
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        other = copy.deepcopy(model)
        other.reset_head(model.num_classes)
    other.class_names = names
    return other


def picture(e: Explanation) -> Image.Image:
    """Both curves of the check of an explanation, over the share of pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    assert e.check is not None
    check = e.check
    figure = Figure(figsize=(9, 3.6), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    better = {"deletion": "less is better", "insertion": "more is better"}
    both = figure.subplots(1, 2, sharey=True)
    both[0].set_ylabel("probability of the target")
    for axes, name in zip(both, better, strict=True):
        for order, style in zip(ORDERS, ("-", ":", "--"), strict=True):
            values = check[f"{name}_curves"][order]
            shares = np.linspace(0, 1, len(values))
            axes.plot(shares, values, style, label=f"{order}: {check[name][order]:.3f}")
        axes.set_title(f"{name}: {better[name]}")
        axes.set_xlabel("share of the pixels")
        axes.legend(title="area", frameon=False)
    facts = (e.model, e.method, check["target"], Path(e.image).name)
    figure.suptitle(" - ".join(fact for fact in facts if fact), fontsize="medium")
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
