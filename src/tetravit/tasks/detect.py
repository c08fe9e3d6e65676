"""Object detection and instance segmentation, with the losses of the head."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from tetravit.data.datasets.base import DatasetInfo
from tetravit.heads.base import Gather
from tetravit.models import Detector, create_detector
from tetravit.protocols.base import check_classes
from tetravit.structures import Batch, Kind, Target
from tetravit.tasks.base import Progress, Task, TaskConfig


class DetectConfig(TaskConfig):
    """The `[task]` section for detection."""

    name: Literal["detect"] = "detect"
    recompute: Literal["off", "backbone"] = Field(
        default="off",
        description="backbone: recompute its blocks in the backward pass (gradient checkpointing): less memory, about"
        " a third more time.",
    )


class Detect(Task):
    """Train a detector; the best weights have the highest AP, of masks if the head predicts them.

    Raises:
        ValueError: if model and data have different numbers of classes, or the head needs masks that the data lack.
    """

    Config: ClassVar[type[TaskConfig]] = DetectConfig
    model_kind: ClassVar[Kind] = "detect"
    data_kinds = ("detect",)
    protocol = "coco"
    model: Detector
    config: DetectConfig

    def __init__(self, model: nn.Module, config: DetectConfig, data: DatasetInfo) -> None:
        super().__init__(model, config, data)
        self.num_classes = data.num_classes
        check_classes(model, data)
        if self.model.head.has_masks and not data.masks:
            raise ValueError(
                f"The head {self.model.head_name!r} trains on masks, and no training object has one;"
                " model.head=retinanet trains on boxes alone."
            )
        self.model.set_grad_checkpointing(config.recompute == "backbone")

    @classmethod
    def create(cls, name: str, *, data: DatasetInfo, **model_options: Any) -> nn.Module:
        return create_detector(name, num_classes=data.num_classes, **model_options)

    def step(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        losses = self.model.loss(batch)
        return {"loss": torch.stack(list(losses.values())).sum(), **losses}

    def whole_step(self, batches: Sequence[Batch], gather: Gather) -> AbstractContextManager[None]:
        return self.model.whole_step(batches, gather)

    def example(self, count: int, size: int | tuple[int, int]) -> Batch:
        height, width = (size, size) if isinstance(size, int) else size
        sides = torch.tensor([width, height])
        corner = torch.rand(count, 8, 2) * sides / 2
        boxes = torch.cat((corner, corner + sides / 8 + torch.rand(count, 8, 2) * sides / 4), dim=2)
        masks = torch.zeros(8, height, width, dtype=torch.bool)
        targets = [Target(box, torch.randint(self.num_classes, (8,)), masks=masks) for box in boxes]
        return Batch(torch.randn(count, 3, height, width), targets)


TASKS = {"detect": Detect}
