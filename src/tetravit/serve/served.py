"""A model as it is served: what it takes, what it gives, and that batches change no bit of it.

Shapes: B images, (C, h, w) an image after preprocessing.
"""

import math
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tetravit.data.palettes import palette
from tetravit.explainers import EXPLAIN, Explanation, explain, find, methods_of
from tetravit.explainers.parts.explanation import refused
from tetravit.models import Detector, Model, load
from tetravit.models.detector import pad
from tetravit.models.portable import flat
from tetravit.models.segmenter import SMALLEST
from tetravit.predictors import PREDICTORS, Option, stream
from tetravit.predictors.parts.predictions import Prediction, Prepared
from tetravit.registry import suggestion
from tetravit.serve.batcher import Batcher, Job
from tetravit.serve.limits import Limits, Refused
from tetravit.world import pick_device

# Options of `tetravit predict` whose cost has no bound that an image gives.
COSTLY = ("side", "window", "stride", "scales")
MANY_PASSES = ("occlusion", "scorecam")  # methods of explanation that run the model hundreds of times
SHAPES = 256  # whose batches are remembered as equal to single images, or not
OPTIONS = 256  # sets of options that are remembered as checked
TRUE, FALSE = ("", "1", "true", "yes", "on"), ("0", "false", "no", "off")


class Served:
    """A model with its name, its thread and the options of a request.

    exact: batches of more than one image are run as one call only where that gives the bits of single images.
    """

    def __init__(
        self,
        name: str,
        model: Model,
        batcher: Batcher,
        limits: Limits,
        *,
        device: str = "auto",
        exact: bool = True,
    ) -> None:
        self.name, self.batcher, self.limits, self.exact = name, batcher, limits, exact
        self.device = pick_device(device)
        self.model = model.to(self.device).eval()
        self.row = PREDICTORS[model.kind]
        self.options: dict[str, Option] = {o.name: o for o in self.row.options if o.name not in COSTLY}
        self.class_names = tuple(model.class_names or map(str, range(model.num_classes)))
        able = [name for name, why in methods_of(model).items() if not why]
        self.methods = [name for name in able if EXPLAIN[name].needs_image and name not in MANY_PASSES]
        self.ready = False
        self.batches = not exact
        self._equal: OrderedDict[tuple[int, ...], bool] = OrderedDict()
        self._checked: OrderedDict[tuple[tuple[str, Any], ...], None] = OrderedDict()

    @property
    def kind(self) -> str:
        return self.model.kind

    def facts(self) -> dict[str, Any]:
        """Description of the model for clients, JSON-ready."""
        return {
            "name": self.name,
            "task": self.kind,
            "model": self.model.name,
            "options": {o.name: o.help for o in self.options.values()},
            "class_names": list(self.class_names),
            "colours": [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in palette(self.class_names)],
            "explain": [{"name": name, "about": EXPLAIN[name].about} for name in self.methods],
            "masks": bool(getattr(self.model.head, "has_masks", False)) or self.kind == "segment",
            "ready": self.ready,
        }

    def read_options(self, given: Iterable[tuple[str, str]]) -> dict[str, Any]:
        """The options of a query, parsed and checked.

        Raises:
            Refused: 400 for one that such a model does not have, or a value that it does not take.
        """
        values: dict[str, Any] = {}
        for name, text in given:
            if name in COSTLY and name in self.row.names:
                raise Refused(400, f"{name} is an option of tetravit predict; a server does not offer it.")
            if name not in self.options:
                raise Refused(
                    400, f"A {self.row.noun} has no option {name!r}.{suggestion(name, self.options)}"
                )
            option = self.options[name]
            try:
                values[name] = option.read(text) if option.metavar else _flag(text)
            except (ValueError, OverflowError) as error:
                raise Refused(400, f"{name} {error}") from None
        key = tuple(sorted(values.items()))
        if key not in self._checked:
            try:
                for _ in stream(self.model, [], device=self.device, **values):
                    pass
            except ValueError as error:
                raise Refused(400, str(error)) from None
            self._checked[key] = None
            while len(self._checked) > OPTIONS:
                self._checked.popitem(last=False)
        return values

    def predict(self, image: Prepared, options: dict[str, Any]) -> Job:
        """The job that predicts an image; its result is a `Prediction`."""

        def run(images: Sequence[Prepared]) -> list[Prediction]:
            if len(images) > 1 and not self._together([image.tensor for image in images]):
                return [p for image in images for p in run([image])]
            predictions = stream(self.model, images, batch_size=len(images), device=self.device, **options)
            return list(predictions)

        shape = tuple(image.tensor.shape)
        return Job(("predict", shape, tuple(sorted(options.items()))), image, run, self._most(shape))

    def explain(self, pixels: Tensor, method: str, settings: dict[str, Any]) -> Job:
        """The job that explains an image uint8 (3, Hi, Wi); its result is an `Explanation`.

        settings: of `tetravit.explain`: class_, layer, head.

        Raises:
            Refused: 400 for a method that does not exist, or has no meaning for the model.
        """
        try:
            name, row = find(method)
        except ValueError as error:
            raise Refused(400, str(error)) from None
        if reason := row.refusal(self.model):
            raise Refused(400, refused(name, self.model, reason))
        if not row.needs_image:
            raise Refused(400, f"{name} is not of a picture; tetravit explain draws it.")
        if name in MANY_PASSES:
            raise Refused(400, f"{name} runs the model hundreds of times; tetravit explain draws it.")

        def run(images: Sequence[Tensor]) -> list[Explanation]:
            return [self._explained(image, name, settings) for image in images]

        return Job(("explain", name), pixels, run)

    def _explained(self, pixels: Tensor, method: str, settings: dict[str, Any]) -> Explanation:
        explanation = explain(self.model, pixels, method, **settings)
        if not explanation.maps:
            raise ValueError(f"{method} gives no map of this model.")
        maps = tuple(replace(one, values=one.values.detach()) for one in explanation.maps)
        return replace(explanation, maps=maps)

    def tensors(self, image: Tensor) -> Job:
        """The job that runs the model on a prepared image (C, h, w); its result is a dict of arrays.

        Each has the batch as its first dimension, 1. Of a detector these are boxes, scores, labels, valid and masks;
        see `Detector.forward`.
        """

        def run(images: Sequence[Tensor]) -> list[dict[str, np.ndarray]]:
            if len(images) > 1 and not self._together(images):
                return [out for image in images for out in run([image])]
            outputs = self._forward(torch.stack(list(images)))
            arrays = {name: x.cpu().numpy() for name, x in zip(self.output_names, outputs, strict=True)}
            return [{name: x[i : i + 1] for name, x in arrays.items()} for i in range(len(images))]

        shape = tuple(image.shape)
        return Job(("tensors", shape), image, run, self._most(shape))

    @property
    def output_names(self) -> tuple[str, ...]:
        return tuple(self.model.output_names)

    def warm_up(self) -> Job:
        """The job that runs the model once, and finds out whether batches give the bits of single images."""

        def run(_: Sequence[Any]) -> list[None]:
            height, width = self.model.usual_sides(min(self.model.input.sides))
            noise = torch.randn(
                (self.limits.max_batch, self.channels, height, width),
                generator=torch.Generator().manual_seed(0),
            )
            if self.exact and len(noise) > 1 and self.kind == "classify":
                self.batches = self._together(list(noise))
            image = Prepared("warm-up", noise[0], (height, width))
            list(stream(self.model, [image], batch_size=1, device=self.device))
            self.ready = True
            return [None]

        return Job("warm-up", None, run)

    @property
    def channels(self) -> int:
        return self.model.input.channels

    def _most(self, shape: tuple[int, ...]) -> int:
        """Images of one shape per call. Segmenters predict one image after another, as `tetravit predict` does."""
        if not self.batches or self.kind == "segment" or (self.exact and self.kind != "classify"):
            return 1
        return self.limits.max_batch

    @torch.inference_mode()
    def _forward(self, images: Tensor) -> tuple[Tensor, ...]:
        images = images.to(self.device)
        if isinstance(self.model, Detector):
            sizes = torch.tensor([images.shape[2:]] * len(images), device=self.device)
            outputs: dict[str, Tensor] = self.model(pad(images), sizes)
            return tuple(outputs[name] for name in self.output_names)
        return flat(self.model(images))

    def _together(self, images: Sequence[Tensor]) -> bool:
        """Whether a batch of these images may be one call: always, or where it gives the bits of single images.

        Which products a call forms, and in which order it adds, depends on shapes alone, so each shape of a batch is
        compared once.
        """
        if not self.exact:
            return True
        key = (len(images), *images[0].shape)
        if key not in self._equal:
            batch = self._forward(torch.stack(list(images)))
            single = [self._forward(image[None]) for image in images]
            self._equal[key] = all(
                torch.equal(x, torch.cat([one[i] for one in single])) for i, x in enumerate(batch)
            )
            while len(self._equal) > SHAPES:
                self._equal.popitem(last=False)
        self._equal.move_to_end(key)
        return self._equal[key]

    def check_tensor(self, shape: Sequence[int]) -> None:
        """Raises: Refused (400, 413) for images (B, C, h, w) of a shape that the model does not take."""
        if len(shape) != 4 or shape[1] != self.channels or shape[0] < 1 or min(shape[2:]) < SMALLEST:
            raise Refused(
                400,
                f"images takes the shape [B, {self.channels}, height, width], sides from {SMALLEST} pixels up;"
                f" got {list(shape)}.",
            )
        if shape[0] > self.limits.max_batch:
            raise Refused(
                413, f"A request holds up to {self.limits.max_batch} images (--max-batch); got {shape[0]}."
            )
        if math.prod(shape) // shape[1] > self.limits.pixels:
            raise Refused(
                413, f"images has more than {self.limits.megapixels:g} million pixels (--max-megapixels)."
            )


def _flag(text: str) -> bool:
    if text.lower() in (*TRUE, *FALSE):
        return text.lower() in TRUE
    raise ValueError(f"takes 1 or 0; got {text!r}.")


def name_of(weights: str) -> str:
    """What a model is called in addresses: the run folder, the file without its ending, or the published name."""
    path = Path(weights)
    if path.is_file() and path.stem in ("best", "last") and path.resolve().parent.name:
        return path.resolve().parent.name
    if path.is_dir():
        return path.resolve().name
    return path.stem if path.is_file() else path.name


def names_of(weights: Sequence[str]) -> list[str]:
    """A name for each model, none twice."""
    names: list[str] = []
    for place in weights:
        base = name = "".join(c if c.isalnum() or c in "._-" else "-" for c in name_of(place)) or "model"
        count = 1
        while name in names:
            count += 1
            name = f"{base}-{count}"
        names.append(name)
    return names


def load_all(
    weights: Sequence[str],
    limits: Limits,
    *,
    device: str = "auto",
    exact: bool = True,
    accept_license: bool = False,
    optimized: Any = None,
    calls: Any = None,
) -> list[Served]:
    """Load models to serve, each with a thread that is not started yet.

    Args:
        optimized: model -> the model in its fastest form; None: as it is.
        calls: (name, images, seconds) of every call of a model.

    Raises:
        ValueError: as `load`, or for a model that predicts nothing (no classes).
    """
    served = []
    for name, place in zip(names_of(weights), weights, strict=True):
        model = load(place, accept_license=accept_license).to(pick_device(device))
        if not model.num_classes:
            raise ValueError(f"{place} has no classes (num_classes=0): it gives embeddings, not predictions.")
        if optimized is not None:
            model = optimized(model)
        count = None if calls is None else _named(calls, name)
        batcher = Batcher(name, limits.wait_ms / 1000, count)
        served.append(Served(name, model, batcher, limits, device=device, exact=exact))
    return served


def _named(calls: Any, name: str) -> Any:
    return lambda images, seconds: calls(name, images, seconds)
