"""Semantic segmentation.

Shapes: B batch, K classes, (Hi, Wi) an image in pixels.
"""

import logging
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from tetravit.data.datasets.base import DatasetInfo
from tetravit.metrics.miou import IGNORE
from tetravit.models import Segmenter, create_segmenter
from tetravit.protocols.base import check_classes
from tetravit.structures import Batch, Kind
from tetravit.tasks.base import Progress, Task, TaskConfig

LOG = logging.getLogger("tetravit.data")
ALONE = "This head trains on 2 images or more at a time on each device; got 1: raise data.batch_size."


class SegmentConfig(TaskConfig):
    """The `[task]` section for segmentation."""

    name: Literal["segment"] = "segment"


class Segment(Task):
    """Train a segmenter with the losses of its head; the best weights have the highest mIoU.

    Labels that are neither a class nor 255 count as 255; each file with such labels is reported once.

    Raises:
        ValueError: if model and data have different numbers of classes.
    """

    Config: ClassVar[type[TaskConfig]] = SegmentConfig
    model_kind: ClassVar[Kind] = "segment"
    data_kinds = ("segment",)
    protocol = "miou"

    model: Segmenter
    config: SegmentConfig

    def __init__(self, model: nn.Module, config: SegmentConfig, data: DatasetInfo) -> None:
        super().__init__(model, config, data)
        self.num_classes = data.num_classes
        check_classes(model, data)
        self._told: set[str] = set()

    @classmethod
    def create(cls, name: str, *, data: DatasetInfo, **model_options: Any) -> nn.Module:
        return create_segmenter(name, num_classes=data.num_classes, **model_options)

    def example(self, count: int, size: int | tuple[int, int]) -> Batch:
        height, width = (size, size) if isinstance(size, int) else size
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            count = max(count, 2)  # synchronized norms of pooled maps: one image per rank is enough
        in_chans = getattr(getattr(self.model, "backbone", None), "in_chans", 3)
        labels = torch.randint(self.num_classes, (count, height, width))
        return Batch(torch.randn(count, in_chans, height, width), labels.to(torch.uint8))

    def step(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        try:
            losses = self.model.loss(batch.images, self._known(batch))
        except ValueError as error:  # from batch norm after global pooling
            if "more than 1 value per channel" not in str(error):
                raise
            raise ValueError(ALONE) from None
        parts = {name: value.detach() for name, value in losses.items()} if len(losses) > 1 else {}
        return {"loss": torch.stack(list(losses.values())).sum(), **parts}

    def _known(self, batch: Batch) -> Tensor:
        """The labels of a batch (B, Hi, Wi), with labels outside the classes set to `IGNORE`."""
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


def beyond_text(name: str, count: int, num_classes: int) -> str:
    """A message about labels outside the classes in the crop of an image."""
    return (
        f"{name}: in a crop, {count} pixels have labels that are neither 0 to {num_classes - 1} nor {IGNORE};"
        " they are left out."
    )


TASKS = {"segment": Segment}
