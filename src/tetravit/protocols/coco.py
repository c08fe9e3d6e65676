"""Average precision of boxes and masks, as COCO defines it."""

import logging
from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field
from torch import Tensor, nn

from tetravit.data.masks import encode_pasted_masks
from tetravit.metrics.coco_ap import LIMITS, Average, CocoAP, Objects, counts_per_class, installed
from tetravit.protocols.base import EMPTY, Loaders, Protocol, ProtocolConfig, Scores, check_classes, device_of
from tetravit.structures import Batch, Target

LOG = logging.getLogger("tetravit.protocols")
NO_MASKS = "The validation set has no masks: boxes alone are scored, and box_ap selects the best weights."
PICTURES = 12  # number of images drawn in a report
SHOWN = 0.3  # minimum score of drawn detections


class CocoConfig(ProtocolConfig):
    """The `[evaluate]` section of detectors."""

    max_detections: int = Field(
        default=LIMITS[-1],
        ge=1,
        description="Maximum detections per image, by score; COCO's limit is 100. The head has a separate limit,"
        " model.head_options.max_detections.",
    )


class Coco(Protocol):
    """box_ap, box_ap50, ... and with masks mask_ap, ...: shares in [0, 1], averaged over classes.

    If no image has an object, false_alarms is the number of detections per image with a score of at least 0.3.

    findings: scores per class, precision-recall curves, some images with their detections.
    """

    name = "coco"
    kinds = ("detect",)
    primary_metrics = ("mask_ap", "box_ap")
    Config = CocoConfig

    _warned = False

    def prepare(self, loaders: Loaders) -> list[str]:
        installed()  # fail before the first step, not at the first evaluation
        info, limit, lines = loaders.info, self.config.max_detections, []
        if info.most_objects > limit:
            lines.append(
                f"images to score on have up to {info.most_objects} objects; {limit} detections per image count"
                f" (evaluate.max_detections={info.most_objects} raises the limit)"
            )
        return lines

    def score(self, model: nn.Module, loaders: Loaders) -> Scores:
        check_classes(model, loaders.info)
        world = loaders.world
        masks = bool(model.head.has_masks)  # type: ignore[union-attr]
        ap = CocoAP(loaders.info.num_classes, masks=masks, max_detections=self.config.max_detections)
        pictures: list[dict[str, Any]] = []
        for batch in loaders.validation:
            detections = _detected(model, batch.to(device_of(model)), masks, len(pictures) < PICTURES)
            for i, (detected, rle, target) in enumerate(detections):
                ap.add(target, detected, rle)
                if len(pictures) < PICTURES:
                    pictures.append(_picture(ap.truth[-1], ap.detections[-1], batch, i, detected.steps))
        ap.truth, ap.detections = world.all_gather(ap.truth), world.all_gather(ap.detections)
        if not ap.truth:
            raise ValueError(EMPTY)
        if masks and any(objects.masks is None for objects in ap.truth):
            if not self._warned:
                LOG.warning("%s", NO_MASKS)
            masks, self._warned = False, True
        kinds: list[Literal["box", "mask"]] = ["box", "mask"] if masks else ["box"]
        averages = world.broadcast({kind: ap.average(kind) for kind in kinds} if world.is_main else None)
        pictures = sorted(world.all_gather(pictures), key=lambda p: int(p["index"]))
        values = {
            f"{kind}_{name}": v for kind, average in averages.items() for name, v in average.scores().items()
        }
        if not any(len(objects.labels) for objects in ap.truth):
            alarms = sum(
                int((objects.scores >= SHOWN).sum())
                for objects in ap.detections
                if objects.scores is not None
            )
            values["false_alarms"] = alarms / len(ap.truth)
        return Scores(values, _findings(averages, ap, pictures))


def _detected(
    model: Any, batch: Batch, masks: bool, steps: bool
) -> Iterable[tuple[Any, list[bytes] | None, Target]]:
    """Detections, their masks as COCO RLE, and the targets of a batch, per image."""
    sizes = [list(t.size or batch.images.shape[2:]) for t in batch.targets]
    per_image = model.detect(
        batch.images,
        batch.sizes,
        output_sizes=sizes,
        masks="probabilities" if masks else "none",
        **({"steps": True} if steps else {}),
    )
    for detections, target, (height, width) in zip(per_image, batch.targets, sizes, strict=True):
        rle = None
        if detections.masks is not None:
            rle = encode_pasted_masks(detections.masks, detections.boxes, (height, width))
        target.size = (height, width)
        yield detections, rle, target


def _findings(averages: dict[str, Average], ap: CocoAP, pictures: list[dict[str, Any]]) -> dict[str, Any]:
    counts = counts_per_class(ap.truth, ap.num_classes)
    rows: list[dict[str, Any]] = [{"objects": count} for count in counts]
    for kind, average in averages.items():
        for row, figures in zip(rows, average.classes(), strict=True):
            row |= {f"{kind}_{name}": v if v is None else round(v, 4) for name, v in figures.items()}
    return {
        "count": len(ap.truth),
        "objects": sum(counts),
        "classes": rows,
        "figures": {kind: average.figures() for kind, average in averages.items()},
        "curves": {kind: average.curves() for kind, average in averages.items()},
        "pictures": pictures[:PICTURES],
    }


def _picture(truth: Objects, detected: Objects, batch: Batch, i: int, steps: Tensor | None) -> dict[str, Any]:
    """An image with annotated and detected objects, as plain data.

    steps: (S, M, 4), boxes of all detections before and after each refinement; None: no refinement.
    """
    assert detected.scores is not None
    sure = [k for k, score in enumerate(detected.scores) if score >= SHOWN]
    return {
        "name": batch.names[i] if batch.names else "",
        "index": batch.indices[i] if batch.indices else -1,
        "size": list(truth.size),
        "truth": _plain(truth, list(range(len(truth.labels)))),
        "detections": {**_plain(detected, sure), "scores": detected.scores[sure].round(4).tolist()},
        **({} if steps is None else {"steps": steps[:, sure].double().cpu().numpy().round(2).tolist()}),
    }


def _plain(objects: Objects, which: list[int]) -> dict[str, Any]:
    masks = None if objects.masks is None else [objects.masks[k].decode("ascii") for k in which]
    return {
        "boxes": objects.boxes[which].round(2).tolist(),
        "labels": objects.labels[which].tolist(),
        "masks": masks,
    }


PROTOCOLS = {"coco": Coco}
