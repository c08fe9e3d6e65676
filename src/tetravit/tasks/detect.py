"""Object detection and instance segmentation: the losses of a head, and COCO's average precision."""

import logging
from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from tetravit.data.masks import pasted_letters
from tetravit.metrics.coco_ap import Average, CocoAP, Objects, counts_per_class, installed
from tetravit.models import Detector, create_detector
from tetravit.structures import Batch, Kind, Preprocess, Target
from tetravit.tasks.base import Task, TaskConfig, from_ranks

LOG = logging.getLogger("tetravit.tasks")
NO_MASKS = "The set to score on has no masks: boxes alone are scored, and box_ap says which weights are best."
PICTURES = 12  # images that a report draws
SHOWN = 0.3  # detections with lower scores are not drawn


class DetectConfig(TaskConfig):
    """The `[task]` section of a recipe that detects.

    recompute: `backbone`: its blocks are computed again in the backward pass, which takes less memory and about a
    third more time.
    """

    name: Literal["detect"] = "detect"
    recompute: Literal["off", "backbone"] = "off"


class Detect(Task):
    """Train a detector; the best weights are those with the highest AP, of masks where the head gives them.

    Raises:
        ValueError: if the model has another number of classes than the data, or images are to be mixed.
    """

    Config: ClassVar[type[TaskConfig]] = DetectConfig
    reads: ClassVar[Kind] = "detect"
    watch = "box_ap"
    model: Detector

    def __init__(self, model: nn.Module, config: DetectConfig, *, num_classes: int, mix: str = "") -> None:
        super().__init__(model)
        self.config, self.num_classes = config, num_classes
        have = getattr(model, "num_classes", num_classes)
        if have != num_classes:
            raise ValueError(f"The model has {have} classes; the data has {num_classes}.")
        if mix:
            raise ValueError(
                f"data.mix joins images of one class each; objects cannot follow it; got {mix!r}."
            )
        self.watch = "mask_ap" if self.model.head.has_masks else "box_ap"  # type: ignore[misc]
        self.model.set_grad_checkpointing(config.recompute == "backbone")

    @classmethod
    def create(cls, name: str, *, num_classes: int, **options: Any) -> nn.Module:
        return create_detector(name, num_classes=num_classes, **options)

    def prepare(self, images: Preprocess) -> None:
        installed()  # said before the first step, not at the first evaluation

    def step(self, batch: Batch) -> dict[str, Tensor]:
        losses = self.model.loss(batch)
        return {"loss": torch.stack(list(losses.values())).sum(), **losses}

    def example(self, count: int, size: int | tuple[int, int]) -> Batch:
        height, width = (size, size) if isinstance(size, int) else size
        sides = torch.tensor([width, height])
        corner = torch.rand(count, 8, 2) * sides / 2
        boxes = torch.cat((corner, corner + sides / 8 + torch.rand(count, 8, 2) * sides / 4), dim=2)
        masks = torch.zeros(8, height, width, dtype=torch.bool)
        targets = [Target(box, torch.randint(self.num_classes, (8,)), masks=masks) for box in boxes]
        return Batch(torch.randn(count, 3, height, width), targets)

    def score(self, loader: Iterable[Batch]) -> dict[str, float]:
        """box_ap, box_ap50, ... and with masks mask_ap, ...: shares in [0, 1], means over the classes.

        findings: the figures of each class, curves of precision over recall, a few images with their detections.
        """
        masks = bool(self.model.head.has_masks)
        judge = CocoAP(self.num_classes, masks=masks)
        pictures: list[dict[str, Any]] = []
        for batch in loader:
            for i, (found, letters, target) in enumerate(self._found(batch.to(self.device), masks)):
                judge.add(target, found, letters)
                if len(pictures) < PICTURES:
                    pictures.append(_picture(judge.truth[-1], judge.found[-1], batch, i))
        judge.truth, judge.found = from_ranks(judge.truth), from_ranks(judge.found)
        if not judge.truth:
            raise ValueError("The set to score on is empty.")
        if masks and any(objects.masks is None for objects in judge.truth):
            if self.watch != "box_ap":
                LOG.warning("%s", NO_MASKS)
            masks, self.watch = False, "box_ap"  # type: ignore[misc]
        kinds: list[Literal["box", "mask"]] = ["box", "mask"] if masks else ["box"]
        leads = not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
        averages = from_ranks([{kind: judge.average(kind) for kind in kinds}] if leads else [])[0]
        self.findings = _findings(averages, judge, sorted(from_ranks(pictures), key=lambda p: p["index"]))
        return {
            f"{kind}_{name}": v for kind, average in averages.items() for name, v in average.scores().items()
        }

    def _found(self, batch: Batch, masks: bool) -> Iterable[tuple[Any, list[bytes] | None, Target]]:
        """What the model finds in each image of a batch, its masks as run lengths, and what is there."""
        sizes = [list(t.size or batch.images.shape[2:]) for t in batch.targets]
        found = self.model.detect(
            batch.images, batch.sizes, output_sizes=sizes, masks="probabilities" if masks else "none"
        )
        for detections, target, (height, width) in zip(found, batch.targets, sizes, strict=True):
            letters = None
            if detections.masks is not None:
                letters = pasted_letters(detections.masks, detections.boxes, (height, width))
            target.size = (height, width)
            yield detections, letters, target


def _findings(averages: dict[str, Average], judge: CocoAP, pictures: list[dict[str, Any]]) -> dict[str, Any]:
    counts = counts_per_class(judge.truth, judge.num_classes)
    rows: list[dict[str, Any]] = [{"objects": count} for count in counts]
    for kind, average in averages.items():
        for row, figures in zip(rows, average.classes(), strict=True):
            row |= {f"{kind}_{name}": v if v is None else round(v, 4) for name, v in figures.items()}
    return {
        "count": len(judge.truth),
        "objects": sum(counts),
        "classes": rows,
        "figures": {kind: average.figures() for kind, average in averages.items()},
        "curves": {kind: average.curves() for kind, average in averages.items()},
        "pictures": pictures[:PICTURES],
    }


def _picture(truth: Objects, found: Objects, batch: Batch, i: int) -> dict[str, Any]:
    """An image with what is there and what was found, as plain data."""
    assert found.scores is not None
    sure = [k for k, score in enumerate(found.scores) if score >= SHOWN]
    return {
        "name": batch.names[i] if batch.names else "",
        "index": batch.indices[i] if batch.indices else -1,
        "size": list(truth.size),
        "truth": _plain(truth, list(range(len(truth.labels)))),
        "found": {**_plain(found, sure), "scores": found.scores[sure].round(4).tolist()},
    }


def _plain(objects: Objects, which: list[int]) -> dict[str, Any]:
    masks = None if objects.masks is None else [objects.masks[k].decode("ascii") for k in which]
    return {
        "boxes": objects.boxes[which].round(2).tolist(),
        "labels": objects.labels[which].tolist(),
        "masks": masks,
    }


TASKS = {"detect": Detect}
