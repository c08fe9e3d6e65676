"""The score that a map explains: of a class, of a class in a region, of one detection.

Shapes: B images, K classes, (Hi, Wi) the model's input, h w the grid of a segmenter's logits.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from tetravit.explainers.base import Request
from tetravit.explainers.parts.detections import class_logit
from tetravit.models import Classifier, Detector, Model, Segmenter
from tetravit.models.detector import pad
from tetravit.models.segmenter import enlarged
from tetravit.structures import Detections


class Target:
    """A scalar score of an image, with gradients.

    name: of the target. score: for the unchanged image. class_: the class index. place: the box of the detection or
    region, left, top, right, bottom in pixels of the input; None: the whole image, or all pixels of the class.
    """

    name: str
    score: float
    class_: int
    place: tuple[float, float, float, float] | None = None

    def __call__(self, images: Tensor) -> Tensor:
        """Images (B, C, Hi, Wi) -> scores (B,): logits, with gradients."""
        raise NotImplementedError

    def probability(self, images: Tensor) -> Tensor:
        """The same as shares in [0, 1] (B,), without gradients."""
        raise NotImplementedError

    def without_gradients(self, images: Tensor) -> Tensor:
        """The score that occlusion compares (B,)."""
        with torch.no_grad():
            return self(images)

    def padded(self, images: Tensor) -> Tensor:
        """Images as the backbone of a dense model gets them."""
        return images

    def of_maps(self, maps: Sequence[Tensor]) -> Tensor:
        """The backbone's maps of a dense model -> scores (B,)."""
        raise NotImplementedError


class ClassTarget(Target):
    """The logit of a class; of a distilled model the mean of both heads."""

    def __init__(self, model: Classifier, images: Tensor, class_: int | None) -> None:
        self.model = model
        with torch.no_grad():
            logits = model(images)[0]
        self.class_ = int(logits.argmax()) if class_ is None else class_
        self.score = float(logits[self.class_])
        self.name = label(model, self.class_)

    def __call__(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)[:, self.class_]
        return logits.float()

    @torch.no_grad()
    def probability(self, images: Tensor) -> Tensor:
        return self.model(images).float().softmax(dim=1)[:, self.class_]


class RegionTarget(Target):
    """The mean of a class's logit over pixels at the head's grid.

    The explained pixels: the one nearest to the query, those in a box, or those of the class.
    """

    def __init__(
        self,
        model: Segmenter,
        images: Tensor,
        class_: int | None,
        query: tuple[float, float] | None,
        box: Sequence[float] | None,
    ) -> None:
        self.model = model
        with torch.no_grad():
            logits = model(enlarged(images))[0]  # (K, h, w)
        labels = logits.argmax(dim=0)
        region = _region(labels, (images.shape[2], images.shape[3]), query, box)
        inside = labels if region is None else labels[region]
        if class_ is None:
            class_ = int(inside.flatten().bincount().argmax())
        if region is None:
            region = labels == class_
        if not region.any():
            raise ValueError(
                f"No pixel of this image has the class {label(model, class_)!r}; give a query or a box."
            )
        self.class_, self.region = class_, region
        if query is not None or box is not None:
            self.place = _covered(region, (images.shape[2], images.shape[3]))
        self.score = float(logits[class_][region].mean())
        self.name = f"{label(model, class_)}, {int(region.sum())} of {region.numel()} cells"

    def padded(self, images: Tensor) -> Tensor:
        return enlarged(images)

    def of_maps(self, maps: Sequence[Tensor]) -> Tensor:
        logits = self.model.head(self.model.pyramid(list(maps)))
        return logits[:, self.class_][:, self.region].float().mean(dim=1)

    def __call__(self, images: Tensor) -> Tensor:
        logits = self.model(enlarged(images))
        return logits[:, self.class_][:, self.region].float().mean(dim=1)

    @torch.no_grad()
    def probability(self, images: Tensor) -> Tensor:
        logits = self.model(enlarged(images)).float().softmax(dim=1)
        return logits[:, self.class_][:, self.region].mean(dim=1)


class DetectionTarget(Target):
    """The class logit of one detection, its box fixed.

    Without gradients: the maximum of score times IoU with the detection, over the detections of its class (as in
    D-RISE, Petsiuk et al. 2021, arXiv:2006.03204).
    """

    def __init__(self, model: Detector, images: Tensor, class_: int | None, index: int | None) -> None:
        self.model = model
        detections = model.detect(images)[0]
        self.index = _chosen(model, detections, class_, index)
        self.box, self.class_ = detections.boxes[self.index], int(detections.labels[self.index])
        self.confidence = float(detections.scores[self.index])
        self.sizes = torch.tensor([images.shape[2:]], device=images.device)
        with torch.no_grad():
            self.score = float(self.of_maps(model.backbone.feature_maps(pad(images)))[0])
        left, top, right, bottom = self.box.tolist()
        self.place = (left, top, right, bottom)
        self.name = f"detection {self.index}: {label(model, self.class_)} {100 * self.confidence:.0f} %"

    def padded(self, images: Tensor) -> Tensor:
        return pad(images)

    def of_maps(self, maps: Sequence[Tensor]) -> Tensor:
        outputs = self.model.head(self.model.pyramid(list(maps)), self.sizes)
        return class_logit(self.model.head, outputs, self.sizes, self.box, self.class_, self.confidence)[None]

    def __call__(self, images: Tensor) -> Tensor:
        return torch.cat([self.of_maps(self.model.backbone.feature_maps(pad(x[None]))) for x in images])

    @torch.no_grad()
    def probability(self, images: Tensor) -> Tensor:
        return torch.stack([self._similarity(detections) for detections in self.model.detect(images)])

    def without_gradients(self, images: Tensor) -> Tensor:
        return self.probability(images)

    def _similarity(self, detections: Detections) -> Tensor:
        same = detections.labels == self.class_
        if not same.any():
            return self.box.new_zeros(())
        from torchvision.ops import box_iou  # slow import

        return (box_iou(self.box[None], detections.boxes[same])[0] * detections.scores[same]).amax()


def target_of(model: Model, images: Tensor, request: Request) -> Target:
    """The score that a request names, for an image (1, C, Hi, Wi).

    Raises:
        ValueError: for a class, region or detection that the image does not have.
    """
    if request.query is not None and not isinstance(model, Segmenter):
        raise ValueError(f"A query chooses the region of a segmenter; this model is a {model.noun}.")
    if isinstance(model, Classifier):
        return ClassTarget(model, images, request.class_)
    if isinstance(model, Segmenter):
        return RegionTarget(model, images, request.class_, request.query, request.option("region"))
    assert isinstance(model, Detector)
    return DetectionTarget(model, images, request.class_, request.option("detection"))


def label(model: Model, class_: int) -> str:
    """The name of a class, or its number."""
    return model.class_names[class_] if model.class_names else f"class {class_}"


def _chosen(model: Detector, detections: Detections, class_: int | None, index: int | None) -> int:
    count = len(detections.scores)
    if not count:
        raise ValueError("There is no detection in this image to explain.")
    if index is not None:
        if not 0 <= index < count:
            raise ValueError(f"Detection {index} does not exist: the image has detections 0 to {count - 1}.")
        return index
    if class_ is None:
        return int(detections.scores.argmax())
    of_class = (detections.labels == class_).nonzero().flatten()
    if not len(of_class):
        names = ", ".join(sorted({label(model, int(i)) for i in detections.labels}))
        raise ValueError(f"There is no {label(model, class_)!r} among the detections of this image: {names}.")
    return int(of_class[detections.scores[of_class].argmax()])


def _region(
    labels: Tensor,
    sides: tuple[int, int],
    query: tuple[float, float] | None,
    box: Sequence[float] | None,
) -> Tensor | None:
    """Cells of the head's grid (h, w) that a query or a box in pixels of the model's input covers; None: neither."""
    if query is None and box is None:
        return None
    left, top, right, bottom = (*query, *query) if query is not None else tuple(box or ())
    region = torch.zeros_like(labels, dtype=torch.bool)
    spans = []
    for low, high, side, count in (
        (top, bottom, sides[0], labels.shape[0]),
        (left, right, sides[1], labels.shape[1]),
    ):
        first = min(max(int((low + 0.5) / side * count), 0), count - 1)
        last = min(max(int((high + 0.5) / side * count), first), count - 1)
        spans.append(slice(first, last + 1))
    region[spans[0], spans[1]] = True
    return region


def _covered(region: Tensor, sides: tuple[int, int]) -> tuple[float, float, float, float]:
    """The box of a region (h, w) bool in pixels of the model's input of (Hi, Wi)."""
    edges = []
    for axis, side in ((0, sides[1]), (1, sides[0])):
        cells = region.any(dim=axis).nonzero().flatten()
        cell = side / region.shape[1 - axis]
        edges.append((int(cells[0]) * cell, (int(cells[-1]) + 1) * cell))
    (left, right), (top, bottom) = edges
    return left, top, right, bottom
