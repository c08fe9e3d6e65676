"""Semantic segmentation: a class for every pixel.

Shapes: B batch, K classes, (Hi, Wi) an image in pixels.
"""

import base64
import io
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor, nn

from tetravit.metrics.miou import IGNORE, MeanIoU, pixel_accuracy, unknown
from tetravit.models.inference import Inference, segment
from tetravit.models.segmenter import Segmenter, create_segmenter
from tetravit.structures import Batch, Kind
from tetravit.tasks.base import Task, TaskConfig, from_ranks, over_ranks

LOG = logging.getLogger("tetravit.data")
FIRST, HARDEST = 6, 6  # images of a set that a report shows
SHOWN_SIDE = 256  # pixels; larger label maps are shrunk for a report
PUBLISHED_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)  # of figures for several: mmsegmentation's --aug-test

ALONE = "This head trains on 2 images or more at a time on each device; got 1: raise data.batch_size."


class SegmentConfig(TaskConfig):
    """The `[task]` section of a recipe that segments: how label maps are made when it is evaluated.

    window, stride, windows_at_once, scales, flip: see `models.inference.Inference`.
    """

    name: Literal["segment"] = "segment"
    window: int | None = None
    stride: int | None = None
    windows_at_once: int = Field(default=4, ge=1)
    scales: tuple[float, ...] = (1.0,)
    flip: Literal["off", "on"] = "off"

    @property
    def inference(self) -> Inference:
        return Inference(self.window, self.stride, self.windows_at_once, self.scales, self.flip)

    def published_as(self, score: str) -> str | None:
        """Published are figures for one look at the whole image, and for `PUBLISHED_SCALES`, mirrored too."""
        how = replace(self.inference, windows_at_once=1, scales=tuple(sorted(self.scales)))
        if how == Inference(windows_at_once=1):
            return score
        several = Inference(windows_at_once=1, scales=PUBLISHED_SCALES, flip="on")
        return f"{score}_multi_scale" if how == several else None

    def eval_scales(self) -> tuple[float, ...]:
        return self.scales

    @model_validator(mode="after")
    def _possible(self) -> "SegmentConfig":
        _ = self.inference
        return self


class Segment(Task):
    """Train a segmenter with the losses of its head; the best weights are those with the highest mIoU.

    Labels that are neither a class nor 255 count as 255; each file that has some is named once.

    Raises:
        ValueError: if the model has another number of classes than the data, or images are to be mixed.
    """

    Config: ClassVar[type[TaskConfig]] = SegmentConfig
    serves = "segment"
    reads: ClassVar[Kind] = "segment"
    watch = "miou"

    model: Segmenter

    def __init__(self, model: nn.Module, config: SegmentConfig, *, num_classes: int, mix: str = "") -> None:
        super().__init__(model)
        self.config, self.num_classes = config, num_classes
        have = getattr(model, "num_classes", num_classes)
        if have != num_classes:
            raise ValueError(f"The model has {have} classes; the data has {num_classes}.")
        if mix:
            raise ValueError(f"A task that segments mixes no images; got data.mix={mix!r}.")
        self._told: set[str] = set()

    @classmethod
    def create(cls, name: str, *, num_classes: int, **options: Any) -> nn.Module:
        return create_segmenter(name, num_classes=num_classes, **options)

    def example(self, count: int, size: int | tuple[int, int]) -> Batch:
        height, width = (size, size) if isinstance(size, int) else size
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            count = max(
                count, 2
            )  # norms of pooled maps share statistics over ranks: one image on each is enough
        in_chans = getattr(getattr(self.model, "backbone", None), "in_chans", 3)
        labels = torch.randint(self.num_classes, (count, height, width))
        return Batch(torch.randn(count, in_chans, height, width), labels.to(torch.uint8))

    def step(self, batch: Batch) -> dict[str, Tensor]:
        try:
            losses = self.model.loss(batch.images, self._known(batch))
        except ValueError as error:  # torch's, of a batch norm behind a mean over the whole map
            if "more than 1 value per channel" not in str(error):
                raise
            raise ValueError(ALONE) from None
        parts = {name: value.detach() for name, value in losses.items()} if len(losses) > 1 else {}
        return {"loss": torch.stack(list(losses.values())).sum(), **parts}

    def _known(self, batch: Batch) -> Tensor:
        """The labels of a batch (B, Hi, Wi), those that are no class as `IGNORE`."""
        labels: Tensor = batch.targets
        beyond = (labels < 0) | (labels >= self.num_classes)
        beyond &= labels != IGNORE
        if not beyond.any():
            return labels
        for i, count in enumerate(beyond.sum(dim=(1, 2)).tolist()):
            name = batch.names[i] if batch.names else ""
            if count and name not in self._told:
                self._told.add(name)
                LOG.warning("%s", beyond_text(name, count, self.num_classes))
        return labels.masked_fill(beyond, IGNORE)

    def score(self, loader: Iterable[Batch]) -> dict[str, float]:
        """miou, macc, aacc, shares in [0, 1] from the totals of the set.

        findings: count of images; iou, accuracy and pixels of each class; unknown: pixels with labels that are no
        class, by file; pictures: label maps of some images, the first and the hardest.
        """
        device = self.device
        totals = MeanIoU(self.num_classes, device)
        count = torch.zeros((), dtype=torch.int64, device=device)
        beyond: list[tuple[str, int]] = []
        first: list[dict[str, Any]] = []
        hardest: list[dict[str, Any]] = []
        for batch in loader:
            names = batch.names or [""] * len(batch)
            indices = batch.indices or [-1] * len(batch)
            for i, (predicted, labels) in enumerate(self._answers(batch)):
                found = totals.update(predicted, labels.to(device))
                count += 1
                if n := int(unknown(found)):
                    beyond.append((names[i], n))
                (share,) = _numbers(torch.tensor([pixel_accuracy(found)], dtype=torch.float64))
                about = {"name": names[i], "index": indices[i], "accuracy": share}
                if len(first) < FIRST:
                    first.append({**about, "map": encoded(predicted)})
                if share is not None and (len(hardest) < HARDEST or share < hardest[-1]["accuracy"]):
                    hardest = _hardest([*hardest, {**about, "map": encoded(predicted)}])
        over_ranks(totals.counts)
        if not int(over_ranks(count)):
            raise ValueError("The set to score on is empty.")
        if not int(totals.confusion.sum()):
            raise ValueError("No pixel of the set has a class.")
        iou, accuracy = totals.per_class()
        self.findings = {
            "count": int(count),
            "iou": _numbers(iou),
            "accuracy": _numbers(accuracy),
            "pixels": totals.confusion.sum(dim=1).tolist(),
            "unknown": dict(from_ranks(beyond)),
            "pictures": {
                "first": sorted(from_ranks(first), key=lambda p: int(p["index"]))[:FIRST],
                "hardest": _hardest(from_ranks(hardest)),
            },
        }
        return totals.result()

    def _answers(self, batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
        """Predicted and true label map of each image of a batch; an image that was filled up is asked alone."""
        assert isinstance(self.config, SegmentConfig)
        how, looks = self.config.inference, [batch, *batch.views]
        images = [look.images.to(self.device) for look in looks]
        sizes = [label.shape for label in batch.targets]
        if all(look.sizes is None for look in looks):
            answers = segment(self.model, images, sizes, how)
        else:
            answers = []
            for i in range(len(batch)):
                alone = [_alone(x, look.sizes, i) for x, look in zip(images, looks, strict=True)]
                answers += segment(self.model, alone, [sizes[i]], how)
        yield from zip(answers, batch.targets, strict=True)


def _alone(images: Tensor, sizes: Tensor | None, i: int) -> Tensor:
    """Image `i` of a batch without what it was filled up with, (1, C, Hi, Wi)."""
    height, width = images.shape[2:] if sizes is None else sizes[i].tolist()
    return images[i : i + 1, :, :height, :width]


def beyond_text(name: str, count: int, num_classes: int) -> str:
    """A line about labels that are no class, in what a batch shows of an image."""
    return (
        f"{name}: in a crop, {count} pixels have labels that are neither 0 to {num_classes - 1} nor {IGNORE};"
        " they are left out."
    )


def encoded(labels: Tensor) -> str:
    """A label map (height, width), shrunk to what a report shows, as base64 of a PNG."""
    height, width = labels.shape
    step = max(1, -(-max(height, width) // SHOWN_SIDE))
    buffer = io.BytesIO()
    Image.fromarray(labels[::step, ::step].to(torch.uint8).cpu().numpy()).save(buffer, "png")
    return base64.b64encode(buffer.getvalue()).decode()


def _hardest(pictures: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those with the fewest right pixels; all have a labelled one."""
    return sorted(pictures, key=lambda p: (p["accuracy"], p["name"]))[:HARDEST]


def _numbers(values: Tensor) -> list[float | None]:
    """Shares to six places; None for NaN, which JSON does not have."""
    return [None if x != x else round(x, 6) for x in values.tolist()]


TASKS = {"segment": Segment}
