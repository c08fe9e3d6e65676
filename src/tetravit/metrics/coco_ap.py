"""Average precision of boxes and masks, as COCO defines it.

faster-coco-eval counts where it is installed; pycocotools, which defines the measure, gives the same figures more
slowly.

Shapes: M objects or detections of an image; T = 10 overlaps from 0.50 to 0.95, R = 101 recalls, K classes, A = 4
ranges of area.
"""

import contextlib
import importlib
import importlib.util
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import Tensor

from tetravit.data.masks import mask_letters
from tetravit.structures import Detections, Target

Engine = Literal["faster_coco_eval", "pycocotools"]
ENGINES: tuple[Engine, ...] = ("faster_coco_eval", "pycocotools")
SIZES = ("all", "small", "medium", "large")  # ranges of area, bounded by 32 and 96 pixels squared
LIMITS = (1, 10, 100)  # detections per image that count, the highest scores first
KINDS = {"box": "bbox", "mask": "segm"}
IOU_50, IOU_75 = 0, 5  # places among the overlaps


@dataclass(frozen=True)
class Objects:
    """What is in one image, or was found in it: plain arrays, which may travel between ranks.

    boxes: (M, 4) x1 y1 x2 y2. masks: run lengths as letters; None: there are none. scores: of detections.
    crowd, area: of the ground truth.
    """

    image_id: int
    size: tuple[int, int]  # height and width of the image
    boxes: np.ndarray  # (M, 4) float64
    labels: np.ndarray  # (M,)
    masks: list[bytes] | None = None
    scores: np.ndarray | None = None
    crowd: np.ndarray | None = None
    area: np.ndarray | None = None


@dataclass(frozen=True)
class Average:
    """The figures of boxes or of masks. precision: (T, R, K, A), recall: (T, K, A, limits); -1: no object."""

    precision: np.ndarray
    recall: np.ndarray
    limits: tuple[int, ...] = LIMITS

    def scores(self) -> dict[str, float]:
        """What a run logs: ap, ap50, ap75, ap of each size that occurs, and the recall at the last limit, ar100."""
        last = f"ar{self.limits[-1]}"
        return {name: v for name, v in self.figures().items() if name.startswith("ap") or name == last}

    def figures(self) -> dict[str, float]:
        """ap, ap50, ap75, by size, and the recall ar1, ar10, ar100, by size; those of sizes that occur."""
        found = {
            "ap": _mean(self.precision[:, :, :, 0]),
            "ap50": _mean(self.precision[IOU_50, :, :, 0]),
            "ap75": _mean(self.precision[IOU_75, :, :, 0]),
        }
        found |= {f"ap_{size}": _mean(self.precision[..., i]) for i, size in enumerate(SIZES) if i}
        found |= {f"ar{limit}": _mean(self.recall[:, :, 0, i]) for i, limit in enumerate(self.limits)}
        found |= {f"ar_{size}": _mean(self.recall[:, :, i, -1]) for i, size in enumerate(SIZES) if i}
        return {name: value for name, value in found.items() if value is not None}

    def classes(self) -> list[dict[str, float | None]]:
        """ap, ap50 and ar100 of each class; None where no object of it occurs."""
        return [
            {
                "ap": _mean(self.precision[:, :, k, 0]),
                "ap50": _mean(self.precision[IOU_50, :, k, 0]),
                f"ar{self.limits[-1]}": _mean(self.recall[:, k, 0, -1]),
            }
            for k in range(self.precision.shape[2])
        ]

    def curves(self) -> dict[str, list[float]]:
        """Precision at the recalls 0, 0.01, ..., 1, mean over the classes: at two overlaps, and over all ten."""
        precision = self.precision[..., 0]  # (T, R, K)
        wanted = {"0.50": precision[:1], "0.75": precision[IOU_75 : IOU_75 + 1], "0.50:0.95": precision}
        found = {}
        for name, part in wanted.items():
            known = part[:, :, (part > -1).all(axis=(0, 1))]
            found[name] = known.mean(axis=(0, 2)).round(4).tolist() if known.size else []
        return found


class CocoAP:
    """Collects objects and detections image by image, and counts at the end.

    masks: whether they are compared too. engine: what counts; None: the fastest that is installed.
    max_detections: the last of the limits: how many detections per image count, those with the highest scores.

    Raises:
        ValueError: if no engine, or not this one, is installed.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        masks: bool = False,
        engine: Engine | None = None,
        max_detections: int = LIMITS[-1],
    ) -> None:
        self.num_classes, self.masks = num_classes, masks
        self.limits = (*(limit for limit in LIMITS[:-1] if limit < max_detections), max_detections)
        self.engine = installed(engine)
        self.truth: list[Objects] = []
        self.found: list[Objects] = []

    def add(self, target: Target, found: Detections, letters: list[bytes] | None = None) -> None:
        """One image. letters: the masks of `found` as run lengths, where they are not in it.

        Boxes and masks of both are in pixels of the original image.
        """
        truth = truth_of(target, masks=self.masks)
        self.truth.append(truth)
        self.found.append(found_of(found, truth, letters, masks=self.masks))

    def average(self, kind: Literal["box", "mask"]) -> Average:
        """The figures of all images so far."""
        package = importlib.import_module(
            f"{self.engine}.mask" if self.engine == "pycocotools" else f"{self.engine}.core.mask"
        )
        truth = [_annotation(objects, i, kind) for objects in self.truth for i in range(len(objects.labels))]
        found = []
        for objects in self.found:
            areas = _areas(objects, kind, package)
            found += [_annotation(objects, i, kind, areas[i]) for i in range(len(objects.labels))]
        counted = self._counted(truth, found, KINDS[kind])
        return Average(counted["precision"][..., -1], counted["recall"], self.limits)

    def _counted(self, truth: list[dict[str, Any]], found: list[dict[str, Any]], kind: str) -> dict[str, Any]:
        COCO, COCOeval = _classes(self.engine)
        images = [{"id": o.image_id, "height": o.size[0], "width": o.size[1]} for o in self.truth]
        categories = [{"id": k, "name": str(k)} for k in range(1, self.num_classes + 1)]
        sets = []
        with contextlib.redirect_stdout(io.StringIO()):
            for annotations in (truth, found):
                for i, annotation in enumerate(annotations, start=1):
                    annotation["id"] = i
                table = COCO()
                table.dataset = {"images": images, "categories": categories, "annotations": annotations}
                table.createIndex()
                sets.append(table)
            judge = COCOeval(*sets, kind)
            judge.params.maxDets = list(self.limits)
            judge.evaluate()
            judge.accumulate()
        counted: dict[str, Any] = judge.eval
        return counted


def installed(engine: Engine | None = None) -> Engine:
    """The engine of that name; None: the fastest there is.

    Raises:
        ValueError: if it is not installed.
    """
    for name in ENGINES if engine is None else (engine,):
        if importlib.util.find_spec(name) is not None:
            return name
    wanted = "faster-coco-eval or pycocotools" if engine is None else engine.replace("_", "-")
    raise ValueError(f"COCO's average precision needs {wanted}: pip install 'tetravit[coco]'.")


def truth_of(target: Target, *, masks: bool) -> Objects:
    """A target as arrays."""
    boxes = target.boxes.double().cpu().numpy()
    count = len(boxes)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    size = target.size or (0, 0)
    return Objects(
        image_id=target.image_id,
        size=size,
        boxes=boxes,
        labels=target.labels.cpu().numpy(),
        masks=mask_letters(target.masks) if masks and target.masks is not None else None,
        crowd=np.zeros(count, bool) if target.crowd is None else target.crowd.cpu().numpy(),
        area=area if target.area is None else target.area.double().cpu().numpy(),
    )


def found_of(
    found: Detections, truth: Objects, letters: list[bytes] | None = None, *, masks: bool = False
) -> Objects:
    """The detections of the image that `truth` describes as arrays."""
    if masks and letters is None and isinstance(found.masks, Tensor):
        letters = mask_letters(found.masks)
    return Objects(
        image_id=truth.image_id,
        size=truth.size,
        boxes=found.boxes.double().cpu().numpy(),
        labels=found.labels.cpu().numpy(),
        scores=found.scores.double().cpu().numpy(),
        masks=letters if masks else None,
    )


def _annotation(objects: Objects, i: int, kind: str, area: float | None = None) -> dict[str, Any]:
    x1, y1, x2, y2 = objects.boxes[i].tolist()
    found: dict[str, Any] = {
        "image_id": objects.image_id,
        "category_id": int(objects.labels[i]) + 1,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "iscrowd": 0,
    }
    if objects.scores is not None:
        found |= {"score": float(objects.scores[i]), "area": area}
    else:
        assert objects.area is not None
        assert objects.crowd is not None
        found |= {"area": float(objects.area[i]), "iscrowd": int(objects.crowd[i])}
    if kind == "mask":
        assert objects.masks is not None
        found["segmentation"] = {"size": list(objects.size), "counts": objects.masks[i]}
    return found


def _areas(objects: Objects, kind: str, package: Any) -> list[float]:
    if kind == "box":
        sides = objects.boxes[:, 2:] - objects.boxes[:, :2]
        return (sides[:, 0] * sides[:, 1]).tolist()
    if not objects.masks:
        return []
    return [
        float(a) for a in package.area([{"size": list(objects.size), "counts": m} for m in objects.masks])
    ]


def _classes(engine: Engine) -> tuple[Any, Any]:
    if engine == "faster_coco_eval":
        package = importlib.import_module("faster_coco_eval")
        return package.COCO, package.COCOeval_faster
    return (
        importlib.import_module("pycocotools.coco").COCO,
        importlib.import_module("pycocotools.cocoeval").COCOeval,
    )


def _mean(values: np.ndarray) -> float | None:
    """Over what is known; None where nothing is."""
    known = values[values > -1]
    return float(known.mean()) if known.size else None


def counts_per_class(truth: Sequence[Objects], num_classes: int) -> list[int]:
    """How many objects of each class there are, crowds apart."""
    labels = [o.labels if o.crowd is None else o.labels[~o.crowd] for o in truth]
    return np.bincount(np.concatenate(labels or [np.empty(0, int)]), minlength=num_classes).tolist()
