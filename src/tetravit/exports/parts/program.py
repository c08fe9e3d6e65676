"""An exported file in the place of its model: for predictions and scores.

Shapes: B batch, C channels, K classes, (Hi, Wi) image in pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tetravit.boxes.pasting import paste_masks
from tetravit.data.preprocess import preprocess
from tetravit.exports.base import Run
from tetravit.structures import Detections, Preprocess

KINDS = ("classify", "segment", "detect")


class Program(nn.Module):
    """What runs a file, with the methods and attributes of a model that predictors and protocols use.

    run: inputs -> outputs. facts: of the file. name: what the file is called in messages.

    Raises:
        ValueError: if the file holds no classifier, segmenter or detector.
    """

    def __init__(self, run: Run, facts: Mapping[str, Any], name: str) -> None:
        super().__init__()
        self.kind = facts.get("task", "")
        if self.kind not in KINDS:
            raise ValueError(f"{name} holds a backbone: it gives feature maps, not predictions.")
        self._run, self.file, self.name = run, name, str(facts["model"])
        self._outputs: list[str] = facts["outputs"]
        (self._least, self._most), self._step = facts["sides"], int(facts["multiple"])
        self.num_classes = int(facts["num_classes"])
        self.class_names = tuple(facts["class_names"])
        self.thresholds = tuple(facts.get("thresholds", ()))
        self.input = read_preprocess(facts["preprocess"])
        if self.kind == "classify" and min(self.input.sides) < self._least:  # too small for the file
            self.input = replace(self.input, size=tuple(facts["made_for"]))
        self.head = SimpleNamespace(has_masks="masks" in self._outputs)

    def preprocess(self, image: Any) -> Tensor:
        """A picture -> float (C, Hi, Wi), as the weights were trained for."""
        return preprocess(image, self.input)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, Hi, Wi) -> logits, as the model's."""
        self._check(images)
        out: Tensor = self._run([images.cpu()])[0].to(images.device)
        return out

    @torch.no_grad()
    def detect(
        self,
        images: Tensor,
        image_sizes: Sequence[Sequence[int]] | Tensor | None = None,
        *,
        output_sizes: Sequence[Sequence[int]] | Tensor | None = None,
        masks: Literal["none", "pasted", "probabilities"] = "none",
        threshold: float = 0.0,
        max_detections: int | None = None,
        class_agnostic: bool | None = None,
        steps: bool = False,
    ) -> list[Detections]:
        """Find the objects of a batch; see `Detector.detect`. Suppression is part of the file, and `steps` are not.

        Raises:
            ValueError: for images too large, or `class_agnostic`.
        """
        if class_agnostic:
            raise ValueError(
                f"{self.file} suppresses class by class, as it was exported; class_agnostic takes the weights."
            )
        height, width = (max(self._least, -(-side // self._step) * self._step) for side in images.shape[2:])
        padded = F.pad(images, (0, width - images.shape[3], 0, height - images.shape[2]))
        self._check(padded)
        own = [images.shape[2:]] * len(images) if image_sizes is None else image_sizes
        sizes = torch.as_tensor(own)
        out = sizes if output_sizes is None else torch.as_tensor(output_sizes)
        given = dict(zip(self._outputs, self._run([padded.cpu(), sizes.cpu()]), strict=True))
        scale = (out / sizes).flip(1).repeat(1, 2)  # (B, 4)
        detections = []
        for i, size in enumerate(out.tolist()):
            keep = given["valid"][i] & (given["scores"][i] >= threshold)
            boxes = (given["boxes"][i, keep] * scale[i])[:max_detections]
            mask = None
            if masks != "none" and "masks" in given:
                mask = given["masks"][i, keep][:max_detections]
                if masks == "pasted":
                    mask = paste_masks(mask, boxes, (size[0], size[1]))
            scores, labels = (given[name][i, keep][:max_detections] for name in ("scores", "labels"))
            detections.append(Detections(boxes, scores, labels, mask))
        return detections

    def _check(self, images: Tensor) -> None:
        """Raises: ValueError for sides that the file does not take."""
        sides = images.shape[2:]
        if min(sides) < self._least or max(sides) > self._most:
            raise ValueError(
                f"{self.file} takes images of {self._least} to {self._most} pixels a side; got"
                f" {sides[0]}x{sides[1]}."
            )


def read_preprocess(table: Mapping[str, Any]) -> Preprocess:
    """A preprocessing from its facts: lists are tuples."""
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in table.items()}
    return Preprocess(**values)
