"""Average precision of boxes and masks, as COCO defines it.

Computed by faster-coco-eval if installed, else by pycocotools, the reference implementation, with equal results.

Shapes: M objects or detections of an image; T = 10 IoU thresholds from 0.50 to 0.95, R = 101 recalls, K classes,
A = 4 ranges of area.
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

from tetravit.rle import encode_masks
from tetravit.structures import Detections, Target

Engine = Literal["faster_coco_eval", "pycocotools"]
ENGINES: tuple[Engine, ...] = ("faster_coco_eval", "pycocotools")
SIZES = ("all", "small", "medium", "large")  # area ranges, bounded by 32^2 and 96^2 pixels
LIMITS = (1, 10, 100)  # maximum detections per image, the highest scores first
KINDS = {"box": "bbox", "mask": "segm"}
IOU_50, IOU_75 = 0, 5  # indices of the IoU thresholds 0.50 and 0.75


@dataclass(frozen=True)
class Objects:
    """Annotated or detected objects of one image, as plain arrays that can be gathered over ranks.

    boxes: (M, 4) x1 y1 x2 y2. masks: compressed COCO RLE; None: without masks. scores: detections only.
    crowd, area: ground truth only.
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
    """Precision and recall of boxes or masks: (T, R, K, A) and (T, K, A, limits); -1 if no object exists."""

    precision: np.ndarray
    recall: np.ndarray
    limits: tuple[int, ...] = LIMITS

    def scores(self) -> dict[str, float]:
        """The logged scores: ap, ap50, ap75, ap per object size, and the recall at the last limit."""
        last = f"ar{self.limits[-1]}"
        return {name: v for name, v in self.figures().items() if name.startswith("ap") or name == last}

    def figures(self) -> dict[str, float]:
        """ap, ap50, ap75 and the recalls ar1, ar10, ar100, overall and by object size; absent sizes are omitted."""
        values = {
            "ap": _mean(self.precision[:, :, :, 0]),
            "ap50": _mean(self.precision[IOU_50, :, :, 0]),
            "ap75": _mean(self.precision[IOU_75, :, :, 0]),
        }
        values |= {f"ap_{size}": _mean(self.precision[..., i]) for i, size in enumerate(SIZES) if i}
        values |= {f"ar{limit}": _mean(self.recall[:, :, 0, i]) for i, limit in enumerate(self.limits)}
        values |= {f"ar_{size}": _mean(self.recall[:, :, i, -1]) for i, size in enumerate(SIZES) if i}
        return {name: value for name, value in values.items() if value is not None}

    def classes(self) -> list[dict[str, float | None]]:
        """ap, ap50 and ar100 of each class; None if it has no object."""
        return [
            {
                "ap": _mean(self.precision[:, :, k, 0]),
                "ap50": _mean(self.precision[IOU_50, :, k, 0]),
                f"ar{self.limits[-1]}": _mean(self.recall[:, k, 0, -1]),
            }
            for k in range(self.precision.shape[2])
        ]

    def curves(self) -> dict[str, list[float]]:
        """Precision at recalls 0, 0.01, ..., 1, averaged over classes: at IoU 0.50, 0.75 and over 0.50:0.95."""
        precision = self.precision[..., 0]  # (T, R, K)
        parts = {"0.50": precision[:1], "0.75": precision[IOU_75 : IOU_75 + 1], "0.50:0.95": precision}
        curves = {}
        for name, part in parts.items():
            valid = part[:, :, (part > -1).all(axis=(0, 1))]
            curves[name] = valid.mean(axis=(0, 2)).round(4).tolist() if valid.size else []
        return curves


class CocoAP:
    """Collects ground truth and detections per image; `average` computes AP.

    masks: score masks as well as boxes. engine: the package used; None: the fastest installed. max_detections:
    detections per image, by score.

    Raises:
        ValueError: if the engine, or any engine, is not installed.
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
        self.detections: list[Objects] = []

    def add(self, target: Target, detections: Detections, rle: list[bytes] | None = None) -> None:
        """Add one image.

        Args:
            target: the ground truth, in pixels of the original image.
            detections: the model's detections, in the same pixels.
            rle: their masks as compressed COCO RLE, if `detections` has none.
        """
        truth = objects_of_target(target, masks=self.masks)
        self.truth.append(truth)
        self.detections.append(objects_of_detections(detections, truth, rle, masks=self.masks))

    def average(self, kind: Literal["box", "mask"]) -> Average:
        """Precision and recall over all added images."""
        package = importlib.import_module(
            f"{self.engine}.mask" if self.engine == "pycocotools" else f"{self.engine}.core.mask"
        )
        truth = [_annotation(objects, i, kind) for objects in self.truth for i in range(len(objects.labels))]
        detections = []
        for objects in self.detections:
            areas = _areas(objects, kind, package)
            detections += [_annotation(objects, i, kind, areas[i]) for i in range(len(objects.labels))]
        result = self._evaluate(truth, detections, KINDS[kind])
        return Average(result["precision"][..., -1], result["recall"], self.limits)

    def _evaluate(
        self, truth: list[dict[str, Any]], detections: list[dict[str, Any]], kind: str
    ) -> dict[str, Any]:
        COCO, COCOeval = _classes(self.engine)
        images = [{"id": o.image_id, "height": o.size[0], "width": o.size[1]} for o in self.truth]
        categories = [{"id": k, "name": str(k)} for k in range(1, self.num_classes + 1)]
        sets = []
        with contextlib.redirect_stdout(io.StringIO()):
            for annotations in (truth, detections):
                for i, annotation in enumerate(annotations, start=1):
                    annotation["id"] = i
                table = COCO()
                table.dataset = {"images": images, "categories": categories, "annotations": annotations}
                table.createIndex()
                sets.append(table)
            evaluator = COCOeval(*sets, kind)
            evaluator.params.maxDets = list(self.limits)
            evaluator.evaluate()
            evaluator.accumulate()
        result: dict[str, Any] = evaluator.eval
        return result


def installed(engine: Engine | None = None) -> Engine:
    """The engine of that name; None: the fastest installed.

    Raises:
        ValueError: if it is not installed.
    """
    for name in ENGINES if engine is None else (engine,):
        if importlib.util.find_spec(name) is not None:
            return name
    wanted = "faster-coco-eval or pycocotools" if engine is None else engine.replace("_", "-")
    raise ValueError(f"COCO's average precision needs {wanted}: pip install 'tetravit[coco]'.")


def objects_of_target(target: Target, *, masks: bool) -> Objects:
    """The ground truth of an image as arrays."""
    boxes = target.boxes.double().cpu().numpy()
    count = len(boxes)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    size = target.size or (0, 0)
    return Objects(
        image_id=target.image_id,
        size=size,
        boxes=boxes,
        labels=target.labels.cpu().numpy(),
        masks=encode_masks(target.masks) if masks and target.masks is not None else None,
        crowd=np.zeros(count, bool) if target.crowd is None else target.crowd.cpu().numpy(),
        area=area if target.area is None else target.area.double().cpu().numpy(),
    )


def objects_of_detections(
    detections: Detections, truth: Objects, rle: list[bytes] | None = None, *, masks: bool = False
) -> Objects:
    """The detections of the image of `truth`, as arrays."""
    if masks and rle is None and isinstance(detections.masks, Tensor):
        rle = encode_masks(detections.masks)
    return Objects(
        image_id=truth.image_id,
        size=truth.size,
        boxes=detections.boxes.double().cpu().numpy(),
        labels=detections.labels.cpu().numpy(),
        scores=detections.scores.double().cpu().numpy(),
        masks=rle if masks else None,
    )


def _annotation(objects: Objects, i: int, kind: str, area: float | None = None) -> dict[str, Any]:
    x1, y1, x2, y2 = objects.boxes[i].tolist()
    annotation: dict[str, Any] = {
        "image_id": objects.image_id,
        "category_id": int(objects.labels[i]) + 1,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "iscrowd": 0,
    }
    if objects.scores is not None:
        annotation |= {"score": float(objects.scores[i]), "area": area}
    else:
        assert objects.area is not None
        assert objects.crowd is not None
        annotation |= {"area": float(objects.area[i]), "iscrowd": int(objects.crowd[i])}
    if kind == "mask":
        assert objects.masks is not None
        annotation["segmentation"] = {"size": list(objects.size), "counts": objects.masks[i]}
    return annotation


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
    """The mean over valid entries, those above -1; None if there is none."""
    valid = values[values > -1]
    return float(valid.mean()) if valid.size else None


def counts_per_class(truth: Sequence[Objects], num_classes: int) -> list[int]:
    """Number of objects per class, without crowds."""
    labels = [o.labels if o.crowd is None else o.labels[~o.crowd] for o in truth]
    return np.bincount(np.concatenate(labels or [np.empty(0, int)]), minlength=num_classes).tolist()
