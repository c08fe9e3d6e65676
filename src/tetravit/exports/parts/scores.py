"""Scores on labelled images of a run's validation set: of the model, and of the file in its place."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from tetravit.data.build import for_head
from tetravit.exports.base import Announce, silent
from tetravit.exports.parts.certificate import Score
from tetravit.protocols import PROTOCOLS, Loaders
from tetravit.recipe import loads
from tetravit.runs.evaluate import open_data, recipe_of, score
from tetravit.structures import Preprocess

PROTOCOL = {"classify": "accuracy", "segment": "miou", "detect": "coco"}
IMAGES = {"classify": 256, "segment": 32, "detect": 32}  # of the validation set


def compare_scores(
    model: Any,
    program: Callable[[], nn.Module],
    weights: str,
    sides: tuple[int, int],
    images: int | None,
    announce: Announce = silent,
) -> tuple[dict[str, Score], int, str]:
    """The scores of both on the validation set of the run that made `weights`.

    Args:
        model: the plain model.
        program: builds the file in its place, where there are labels.
        weights: a run folder or weights file.
        sides: height and width that the file is fastest at: those of the images where the model's own are too small.
        images: how many of the set, evenly spaced; None: `IMAGES`; 0: none.
        announce: takes a line before the scores.

    Returns:
        Score by name, how many images, and why there is no score: "" where there is one.
    """
    kind = getattr(model, "kind", "")
    text = recipe_of(weights) if weights else ""
    if images == 0 or kind not in PROTOCOL or not text:
        return {}, 0, "no labelled images are known" if images != 0 else "none was asked for"
    try:
        recipe = loads(text, name="The recipe in the weights")
        name = PROTOCOL[kind]
        config = recipe.evaluate if recipe.evaluate.protocol == name else PROTOCOLS[name].Config()
        protocol = PROTOCOLS[name](config)
        has_masks = getattr(model.head, "has_masks", True)
        data = for_head(recipe.data.model_copy(update={"workers": 0}), has_masks)
        loader = open_data(
            data,
            _input(model, sides) if kind == "classify" else model.input,
            class_names=model.class_names,
            scales=config.eval_scales(),
            images=IMAGES[kind] if images is None else images,
        )
        loaders = Loaders(loader, loader.dataset.info)
        protocol.prepare(loaders)
        rows = []
        for which, one in (("model", model), ("file", program())):
            announce(f"Scoring the {which} on its validation set")
            rows.append(score(one, loaders, protocol, weights=weights, data=data.name))
    except (ValueError, OSError) as error:
        return {}, 0, " ".join(str(error).split()).rstrip(".")
    return _pairs(protocol.primary_metrics, *(row.scores for row in rows)), rows[0].images, ""


def _pairs(
    names: tuple[str, ...], before: Mapping[str, float], after: Mapping[str, float]
) -> dict[str, Score]:
    return {name: Score(before[name], after[name]) for name in names if name in before and name in after}


def _input(model: Any, sides: tuple[int, int]) -> Preprocess:
    """The preprocessing of a classifier at sides that a file takes."""
    p: Preprocess = model.input
    return p if min(p.sides) >= model.program_sides[0] else replace(p, size=sides)
