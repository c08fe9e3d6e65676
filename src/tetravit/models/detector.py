"""Detectors: boxes, classes and, with some heads, masks."""

import inspect
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tetravit.boxes.pasting import paste_masks
from tetravit.data import coco
from tetravit.heads import heads_of
from tetravit.heads.base import Gather
from tetravit.models.base import DenseModel
from tetravit.models.portable import LARGEST, apart
from tetravit.models.targets import check_images, check_targets
from tetravit.structures import COCO_INPUT, Batch, Detections, Target
from tetravit.weights import convert

PADDING = 32  # sides of a batch are padded to multiples of this many pixels

Masks = Literal["none", "pasted", "probabilities"]


class Detector(DenseModel):
    """A backbone with its adapter and a detection head.

    Calling it returns fixed-shape tensors (export), `detect` one record per image, `loss` the training losses.
    """

    kind = "detect"
    noun = "detector"
    head_noun = "detection head"
    default_head = "mask_rcnn"
    default_classes = 80  # of COCO
    usual_input = COCO_INPUT
    program_inputs = ("images", "sizes")
    accelerated = "feature_maps"

    @property
    def program_sides(self) -> range:
        return range(self.head.least_side, LARGEST + 1, PADDING)

    def forward(self, images: Tensor, sizes: Tensor) -> dict[str, Tensor]:
        """Detections of a batch as tensors, best first, padded to the image with most detections.

        Args:
            images: (B, C, Hi, Wi), sides multiples of 32.
            sizes: (B, 2) int64, the height and width of each image without its padding.

        Returns:
            boxes (B, P, 4) in pixels of the batch, scores (B, P), labels (B, P) int64, valid (B, P) bool, False for
            padding; with mask heads also masks (B, P, 28, 28), probabilities relative to the boxes. In an exported
            graph P is the head's `max_detections`.
        """
        outputs = self.head(self.feature_maps(images), sizes)
        selected = self.head.decode(outputs, sizes)
        tensors: dict[str, Tensor] = selected._asdict()
        if self.head.has_masks:
            tensors["masks"] = self.head.mask_probabilities(outputs, selected.boxes, selected.labels)
        return tensors

    @classmethod
    def published_class_names(
        cls, resolved: convert.ResolvedWeights, layout: str, num_classes: int
    ) -> tuple[str, ...]:
        if layout == "dino":
            known = (coco.raw_names(), coco.class_names())
            return next((names for names in known if len(names) == num_classes), ())
        return coco.class_names() if resolved.row and resolved.row.data.startswith("COCO") else ()

    def about_classes(self) -> str:
        if self.class_names == coco.raw_names():
            return "91, COCO's category ids 0 to 90, of which 80 are in use"
        if self.class_names == coco.class_names():
            return "80 of COCO; its category ids are 1 to 90 without ten (tetravit.data.coco.category_ids)"
        return ""

    @property
    def output_names(self) -> tuple[str, ...]:
        return ("boxes", "scores", "labels", "valid", *(("masks",) if self.head.has_masks else ()))

    def other_inputs(self, images: Tensor) -> tuple[Tensor, ...]:
        height, width = images.shape[2:]
        return (torch.tensor([[height - 7 * i, width - 5 * i] for i in range(len(images))]),)

    def accelerated_parts(self) -> Sequence[nn.Module]:
        return self.backbone, self.pyramid

    def difference(self, got: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
        mine, theirs = (dict(zip(self.output_names, x, strict=True)) for x in (got, expected))
        return max(apart(mine, theirs, i) for i in range(len(theirs["valid"])))

    def count_objects(self, outputs: Sequence[Tensor]) -> int | None:
        return int(outputs[self.output_names.index("valid")].sum())

    @torch.no_grad()
    def detect(
        self,
        images: Tensor,
        image_sizes: Sequence[Sequence[int]] | Tensor | None = None,
        *,
        output_sizes: Sequence[Sequence[int]] | Tensor | None = None,
        masks: Masks = "none",
        threshold: float = 0.0,
        max_detections: int | None = None,
        class_agnostic: bool | None = None,
        steps: bool = False,
    ) -> list[Detections]:
        """Detect objects in a batch.

        Args:
            images: (B, C, Hi, Wi) normalized, each image in the upper left corner, zeros elsewhere.
            image_sizes: height and width of each image without its padding; None: no padding.
            output_sizes: height and width of the pictures for boxes and masks, for example before resizing for the
                model; None: `image_sizes`.
            masks: "pasted": bool masks of the output size; "probabilities": (M, 28, 28) relative to the boxes, for
                `boxes.pasting.paste_masks`; "none": no masks.
            threshold: minimum score, in addition to that of the head.
            max_detections: per image; None: the head's own limit.
            class_agnostic: whether NMS also suppresses overlapping boxes of other classes; None: the head's default.
            steps: also return boxes before refinement, for heads that refine them layer by layer.

        Raises:
            ValueError: for images or sizes that do not match, masks of a head without masks, or an option that the
                head does not have.
        """
        check_images(images)
        sizes = self._sizes(images, image_sizes, "image_sizes")
        if (sizes > sizes.new_tensor(images.shape[2:])).any():
            raise ValueError(
                f"image_sizes must lie within the batch's {images.shape[2]} x {images.shape[3]} pixels;"
                f" got {sizes.tolist()}."
            )
        out = sizes if output_sizes is None else self._sizes(images, output_sizes, "output_sizes")
        if masks not in ("none", "pasted", "probabilities"):
            raise ValueError(f"masks takes one of none, pasted, probabilities; got {masks!r}.")
        if masks != "none" and not self.head.has_masks:
            others = ", ".join(name for name, head in heads_of("detect").items() if head.has_masks)
            raise ValueError(f"{type(self.head).__name__} predicts no masks; heads that do: {others}.")
        limits = self._limits(max_detections=max_detections, class_agnostic=class_agnostic)
        outputs = self.head(self.feature_maps(pad(images)), sizes)
        selected = self.head.decode(outputs, sizes, **limits)
        probabilities: Sequence[Tensor | None] | Tensor = [None] * len(images)
        if masks != "none":
            probabilities = self.head.mask_probabilities(outputs, selected.boxes, selected.labels)
        refined = None
        if steps:
            refined = self.head.steps(outputs, sizes, max_detections)
        scale = (out / sizes).flip(1).repeat(1, 2)  # (B, 4)
        detections = []
        for i, size in enumerate(out.tolist()):
            keep = selected.valid[i] & (selected.scores[i] >= threshold)
            boxes = selected.boxes[i, keep] * scale[i]
            mask = probabilities[i]
            if mask is not None:
                mask = mask[keep]
                if masks == "pasted":
                    mask = paste_masks(mask, boxes, (size[0], size[1]))
            moved = None if refined is None else refined[1][:, i, keep] * scale[i]
            detections.append(
                Detections(boxes, selected.scores[i, keep], selected.labels[i, keep], mask, moved)
            )
        return detections

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The head's losses; training minimises their sum.

        Crowds and zero-area boxes count as background.

        Raises:
            ValueError: for images and targets that do not match, a box that is inverted, not finite or outside its
                image, or a label out of range.
        """
        check_images(batch.images)
        given = check_targets(batch, masks=self.head.has_masks)
        targets = [self._usable(target, batch, i) for i, target in enumerate(given)]
        sizes = self._sizes(batch.images, batch.sizes, "sizes")
        outputs = self.head(self.feature_maps(pad(batch.images)), sizes, targets)
        return self.head.loss(outputs, targets, sizes)

    def whole_step(
        self, batches: Sequence[Batch], gather: Gather = lambda value: [value]
    ) -> AbstractContextManager[None]:
        """Context for `loss` of each micro-batch of a training step, for losses averaged over all objects.

        batches: all micro-batches of the step on this rank. gather: a number or tuple -> those of all ranks.
        """
        return self.head.whole_step(
            [[self._usable(target, batch, i) for i, target in enumerate(batch.targets)] for batch in batches],
            gather,
        )

    def _limits(self, **given: Any) -> dict[str, Any]:
        """The options for the head's `decode` that are not None.

        Raises:
            ValueError: for an option that the head does not have.
        """
        takes = inspect.signature(self.head.decode).parameters
        limits = {name: value for name, value in given.items() if value is not None}
        for name in limits:
            if name not in takes:
                raise ValueError(f"{type(self.head).__name__} has no option {name}.")
        return limits

    def _sizes(self, images: Tensor, sizes: Any, name: str) -> Tensor:
        if sizes is None:
            return torch.tensor([images.shape[2:]] * len(images), device=images.device)
        given = torch.as_tensor(sizes, device=images.device)
        if given.shape != (len(images), 2) or (given < 1).any():
            sizes = sizes.tolist() if isinstance(sizes, Tensor) else sizes  # in one line
            raise ValueError(
                f"{name} holds a height and a width in pixels for each of the {len(images)} images; got {sizes!r}."
            )
        return given

    def _usable(self, target: Target, batch: Batch, i: int) -> Target:
        keep = (target.boxes[:, 2:] > target.boxes[:, :2]).all(dim=1)
        if target.crowd is not None:
            keep &= ~target.crowd
        labels = target.labels[keep]
        wrong = labels[(labels < 0) | (labels >= self.num_classes)]
        if len(wrong):
            name = batch.names[i] if i < len(batch.names) else f"image {i} of the batch"
            raise ValueError(
                f"labels are 0 to {self.num_classes - 1} for num_classes={self.num_classes};"
                f" got {int(wrong[0])} in {name}."
            )
        masks = None if target.masks is None else target.masks[keep]
        return replace(target, boxes=target.boxes[keep], labels=labels, masks=masks, crowd=None, area=None)


def pad(images: Tensor) -> Tensor:
    """Zero-pad images on the right and bottom to multiples of 32 pixels."""
    return F.pad(images, (0, -images.shape[3] % PADDING, 0, -images.shape[2] % PADDING))
