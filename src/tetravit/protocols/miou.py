"""Mean intersection over union of label maps.

Shapes: K classes, (Hi, Wi) an image in pixels.
"""

import base64
import io
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Self

import torch
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor, nn

from tetravit.data.parts import class_notes
from tetravit.metrics.miou import MeanIoU, pixel_accuracy, unknown
from tetravit.models.inference import Inference, segment
from tetravit.protocols.base import EMPTY, Loaders, Protocol, ProtocolConfig, Scores, check_classes, device_of
from tetravit.structures import Batch

LOG = logging.getLogger("tetravit.protocols")
FIRST, HARDEST = 6, 6  # images in a report
SHOWN_SIDE = 256  # pixels; larger label maps are downsized for a report
PUBLISHED_SCALES = (
    0.5,
    0.75,
    1.0,
    1.25,
    1.5,
    1.75,
)  # of published multi-scale scores: mmsegmentation's --aug-test


class MIoUConfig(ProtocolConfig):
    """The `[evaluate]` section of segmenters: inference settings, see `models.inference.Inference`."""

    window: int | None = Field(
        default=None,
        description="Side of sliding windows in pixels; unset: the whole image at once.",
    )
    stride: int | None = Field(
        default=None, description="Stride of the windows in pixels; unset: two thirds of a window."
    )
    windows_at_once: int = Field(default=4, ge=1, description="Windows per forward pass.")
    scales: tuple[float, ...] = Field(
        default=(1.0,),
        description="Scale factors of multi-scale inference; predictions are averaged.",
    )
    flip: bool = Field(
        default=False, description="Average with the prediction for the horizontally flipped image."
    )

    @property
    def inference(self) -> Inference:
        return Inference(self.window, self.stride, self.windows_at_once, self.scales, self.flip)

    def published_as(self, score: str) -> str | None:
        """Published scores are single-scale, or at `PUBLISHED_SCALES` with flips."""
        how = replace(self.inference, windows_at_once=1, scales=tuple(sorted(self.scales)))
        if how == Inference(windows_at_once=1):
            return score
        several = Inference(windows_at_once=1, scales=PUBLISHED_SCALES, flip=True)
        return f"{score}_multi_scale" if how == several else None

    def eval_scales(self) -> tuple[float, ...]:
        return self.scales

    @model_validator(mode="after")
    def _possible(self) -> Self:
        _ = self.inference
        return self


class MIoU(Protocol):
    """miou, macc, aacc: shares in [0, 1] from totals over the set.

    findings: number of images; iou, accuracy and pixels per class; unknown: pixels with labels outside the classes,
    by file; pictures: label maps of some images, the first and the hardest.
    """

    name = "miou"
    kinds = ("segment",)
    primary_metrics = ("miou",)
    Config = MIoUConfig

    _checked = False

    def score(self, model: nn.Module, loaders: Loaders) -> Scores:
        check_classes(model, loaders.info)
        device, world = device_of(model), loaders.world
        totals = MeanIoU(loaders.info.num_classes, device)
        count = torch.zeros((), dtype=torch.int64, device=device)
        beyond: list[tuple[str, int]] = []
        first: list[dict[str, Any]] = []
        hardest: list[dict[str, Any]] = []
        for batch in loaders.validation:
            names = batch.names or [""] * len(batch)
            indices = batch.indices or [-1] * len(batch)
            for i, (predicted, labels) in enumerate(predictions(model, batch, self.config.inference)):
                counted = totals.update(predicted, labels.to(device))
                count += 1
                if n := int(unknown(counted)):
                    beyond.append((names[i], n))
                (share,) = _numbers(torch.tensor([pixel_accuracy(counted)], dtype=torch.float64))
                about = {"name": names[i], "index": indices[i], "accuracy": share}
                if len(first) < FIRST:
                    first.append({**about, "map": encoded(predicted)})
                if share is not None and (len(hardest) < HARDEST or share < hardest[-1]["accuracy"]):
                    hardest = _hardest([*hardest, {**about, "map": encoded(predicted)}])
        world.all_sum(totals.counts)
        if not int(world.all_sum(count)):
            raise ValueError(EMPTY)
        if not int(totals.confusion.sum()):
            raise ValueError("No pixel of the set has a class.")
        if (
            loaders.info.counts is None and not self._checked and world.is_main
        ):  # otherwise printed before training
            pixels = totals.confusion.sum(dim=1).cpu().numpy()
            for line in class_notes(pixels, loaders.info.class_names, "the images that are scored"):
                LOG.warning("%s.", line)
        self._checked = True
        iou, accuracy = totals.per_class()
        findings = {
            "count": int(count),
            "iou": _numbers(iou),
            "accuracy": _numbers(accuracy),
            "pixels": totals.confusion.sum(dim=1).tolist(),
            "unknown": dict(world.all_gather(beyond)),
            "pictures": {
                "first": sorted(world.all_gather(first), key=lambda p: int(p["index"]))[:FIRST],
                "hardest": _hardest(world.all_gather(hardest)),
            },
        }
        return Scores(totals.result(), findings)


def predictions(model: Any, batch: Batch, how: Inference) -> Iterator[tuple[Tensor, Tensor]]:
    """Predicted and true label map of each image of a batch; padded images are predicted one by one."""
    device, versions = device_of(model), [batch, *batch.views]
    images = [version.images.to(device) for version in versions]
    sizes = [label.shape for label in batch.targets]
    if all(version.sizes is None for version in versions):
        maps = segment(model, images, sizes, how)
    else:
        maps = []
        for i in range(len(batch)):
            alone = [_unpadded(x, version.sizes, i) for x, version in zip(images, versions, strict=True)]
            maps += segment(model, alone, [sizes[i]], how)
    yield from zip(maps, batch.targets, strict=True)


def _unpadded(images: Tensor, sizes: Tensor | None, i: int) -> Tensor:
    """Image `i` of a batch without its padding, (1, C, Hi, Wi)."""
    height, width = images.shape[2:] if sizes is None else sizes[i].tolist()
    return images[i : i + 1, :, :height, :width]


def encoded(labels: Tensor) -> str:
    """A label map (height, width), downsized for a report, as base64 PNG."""
    height, width = labels.shape
    step = max(1, -(-max(height, width) // SHOWN_SIDE))
    buffer = io.BytesIO()
    Image.fromarray(labels[::step, ::step].to(torch.uint8).cpu().numpy()).save(buffer, "png")
    return base64.b64encode(buffer.getvalue()).decode()


def _hardest(pictures: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The images with the lowest pixel accuracy; each has a labelled pixel."""
    return sorted(pictures, key=lambda p: (p["accuracy"], p["name"]))[:HARDEST]


def _numbers(values: Tensor) -> list[float | None]:
    """Shares rounded to six places; None for NaN, which JSON cannot represent."""
    return [None if x != x else round(x, 6) for x in values.tolist()]


PROTOCOLS = {"miou": MIoU}
