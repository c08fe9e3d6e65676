"""Attribution maps of a model's mistakes, for a few pictures of a report, within a time budget."""

import time
from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tetravit.draw.heat import outline, scale_of
from tetravit.explainers import Explanation, explain, methods_of
from tetravit.explainers.parts.pictures import over, rgb
from tetravit.models import Model, load
from tetravit.models.detector import Detector
from tetravit.models.load import weights_of
from tetravit.report.html import picture_uri
from tetravit.report.run import Run

SECONDS = 20.0  # time budget for all maps of a report
SIDE = 224  # pixels: minimum picture side
OVERLAP = 0.5  # IoU above which a detection matches an object


class Maps:
    """Computes maps for the run's weights until the time budget is used up; none if the weights are missing.

    method: the method used, "" if there is none.
    """

    def __init__(self, run: Run) -> None:
        self.model: Model | None = None
        self.method, self.used = "", 0.0
        try:
            file = weights_of(run.folder)
            self.model = load(file) if file.is_file() else None
        except (ValueError, OSError):
            return
        if self.model is not None:
            able = [name for name, why in methods_of(self.model).items() if not why]
            self.method = next((m for m in ("attention-gradient", "hirescam") if m in able), "")
            if self.model.backbone.cam_layer == "norm" and "gradcam" in able:
                self.method = "gradcam"

    def of_class(self, image: Tensor, class_: int, name: str) -> str:
        """The map of a class over a picture, as HTML; "" without remaining time, or if it fails."""
        return self._made(image, name, lambda model: explain(model, image, self.method, class_=class_))

    def of_detection(self, image: Tensor, label: int, box: list[float], name: str) -> str:
        """The map of the detection with this label and box, in pixels of the picture."""

        def run(model: Model) -> Explanation:
            assert isinstance(model, Detector)
            index = _index(model, image, label, box)
            return explain(model, image, self.method, detection=index)

        return self._made(image, name, run)

    def _made(self, image: Tensor, name: str, run: Any) -> str:
        if self.model is None or not self.method or self.used >= SECONDS:
            return ""
        start = time.monotonic()
        try:
            explanation: Explanation = run(self.model)
        except (ValueError, RuntimeError):
            return ""
        finally:
            self.used += time.monotonic() - start
        picture = Image.fromarray(rgb(image))
        if max(picture.size) < SIDE:
            factor = SIDE // max(picture.size)
            picture = picture.resize(
                (picture.width * factor, picture.height * factor), Image.Resampling.NEAREST
            )
        assert explanation.view is not None
        one = explanation.maps[0].mean()
        shown = over(
            np.asarray(picture), explanation.view, one, scale_of(one.values.numpy(), signed=one.signed)
        )
        if one.box is not None:
            share = shown.width / explanation.view.picture[1]
            left, top, right, bottom = (share * edge for edge in explanation.view.to_picture(one.box))
            outline(shown, (left, top, right, bottom))
        return f'<img src="{picture_uri(shown)}" alt="{escape(name)}: {self.method}">'


def false_detections(entries: list[Mapping[str, Any]], count: int) -> list[tuple[Mapping[str, Any], int]]:
    """The highest-scoring detections without overlap with an object of their class: (entry, index in it)."""
    from torchvision.ops import box_iou

    wrong = []
    for entry in entries:
        detections, truth = entry["detections"], entry["truth"]
        for i, (box, label) in enumerate(zip(detections["boxes"], detections["labels"], strict=True)):
            same = [b for b, k in zip(truth["boxes"], truth["labels"], strict=True) if k == label]
            overlap = box_iou(torch.tensor([box]).float(), torch.tensor(same).float()).max() if same else 0.0
            if overlap < OVERLAP:
                wrong.append((float(detections["scores"][i]), entry, i))
    wrong.sort(key=lambda item: -item[0])
    return [(entry, i) for _, entry, i in wrong[:count]]


def _index(model: Detector, image: Tensor, label: int, box: list[float]) -> int:
    """The index of the detection of an image with a label and a box.

    Raises:
        ValueError: if there is none.
    """
    from torchvision.ops import box_iou

    prepared = model.preprocess(image)
    detections = model.detect(prepared[None], output_sizes=[list(image.shape[1:])])[0]
    overlap = box_iou(torch.tensor([box]).float(), detections.boxes)[0]
    overlap = torch.where(detections.labels == label, overlap, torch.zeros_like(overlap))
    if not len(overlap) or float(overlap.max()) < 0.9:
        raise ValueError("The detection is not there any more.")
    return int(overlap.argmax())
