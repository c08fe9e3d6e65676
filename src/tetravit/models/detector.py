"""Images -> objects: boxes, classes and, with the heads that give them, masks."""

import inspect
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from tetravit.boxes.pasting import paste_masks
from tetravit.data import coco
from tetravit.heads import HEADS
from tetravit.models.build import Size, class_names, create_backbone, family, resolve
from tetravit.models.dense import DenseModel, head_of
from tetravit.models.pretrained import load_backbone
from tetravit.registry import pick, suggestion
from tetravit.structures import COCO_INPUT, Batch, Detections, Target
from tetravit.weights import LAYOUTS, convert
from tetravit.weights.mmdet import ADAPTERS, DenseMap, dense_map
from tetravit.weights.read import Report, State, load_into

PADDING = 32  # sides of a batch are padded to multiples of this many pixels
DETECTORS = ("cascade", "mask_rcnn", "retinanet")
COCO_CLASSES = 80
RETINANET_ANCHORS = 9  # per cell
SCORES = ("head.score.*", "head.boxes.*.score.*", "head.boxes.*.delta.*", "head.masks.*.score.*")

Masks = Literal["none", "pasted", "probabilities"]


class Detector(DenseModel):
    """A backbone with its adapter and a detection head.

    Call it for tensors of one shape (export), `detect` for one record per image, `loss` to train.
    """

    task = "detect"
    usual_input = COCO_INPUT

    def forward(self, images: Tensor, sizes: Tensor) -> dict[str, Tensor]:
        """Detections of a batch in tensors, best first, filling last where images have fewer than others.

        Args:
            images: (B, C, Hi, Wi), sides multiples of 32.
            sizes: (B, 2) int64, the height and width of each image without its padding.

        Returns:
            boxes (B, P, 4) in pixels of the batch, scores (B, P), labels (B, P) int64, valid (B, P) bool: not
            filling; with a head that has them masks (B, P, 28, 28), probabilities in the frames of the boxes.
            In an exported graph P is always the head's `max_detections`.
        """
        outputs = self.head(self.feature_maps(images))
        picked = self.head.decode(outputs, sizes)  # type: ignore[operator]
        found: dict[str, Tensor] = picked._asdict()
        if self.head.has_masks:
            found["masks"] = self.head.mask_probabilities(outputs, picked.boxes, picked.labels)  # type: ignore[operator]
        return found

    @torch.no_grad()
    def detect(
        self,
        images: Tensor,
        image_sizes: Sequence[Sequence[int]] | Tensor | None = None,
        *,
        output_sizes: Sequence[Sequence[int]] | Tensor | None = None,
        masks: Masks = "none",
        threshold: float = 0.0,
    ) -> list[Detections]:
        """Find the objects of a batch.

        Args:
            images: (B, C, Hi, Wi) normalized, each image in the upper left corner, zeros elsewhere.
            image_sizes: height and width of each image without its padding; None: there is none.
            output_sizes: height and width of the pictures that boxes and masks are to fit, before they were
                resized for the model, say; None: `image_sizes`.
            masks: "pasted": bool masks of the output size; "probabilities": (M, 28, 28) in the frames of the
                boxes, for `boxes.pasting.paste_masks`; "none": no masks.
            threshold: detections with lower scores are left out, beyond those the head drops.

        Raises:
            ValueError: for sizes that do not fit the batch, or masks of a head that predicts none.
        """
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
            others = ", ".join(name for name in DETECTORS if HEADS[name].has_masks)
            raise ValueError(f"{type(self.head).__name__} predicts no masks; heads that do: {others}.")
        outputs = self.head(self.feature_maps(pad(images)))
        picked = self.head.decode(outputs, sizes)  # type: ignore[operator]
        probabilities = [None] * len(images)
        if masks != "none":
            probabilities = self.head.mask_probabilities(outputs, picked.boxes, picked.labels)  # type: ignore
        scale = (out / sizes).flip(1).repeat(1, 2)  # (B, 4)
        found = []
        for i, size in enumerate(out.tolist()):
            keep = picked.valid[i] & (picked.scores[i] >= threshold)
            boxes = picked.boxes[i, keep] * scale[i]
            mask = probabilities[i]
            if mask is not None:
                mask = mask[keep]
                if masks == "pasted":
                    mask = paste_masks(mask, boxes, (size[0], size[1]))
            found.append(Detections(boxes, picked.scores[i, keep], picked.labels[i, keep], mask))
        return found

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The head's losses, whose sum is to be minimised.

        Crowds and boxes without a finite, positive area count as background.

        Raises:
            ValueError: for a label that the head does not have.
        """
        targets = [self._usable(target, batch, i) for i, target in enumerate(batch.targets)]
        sizes = self._sizes(batch.images, batch.sizes, "sizes")
        outputs = self.head(self.feature_maps(pad(batch.images)))
        return self.head.loss(outputs, targets, sizes)  # type: ignore[operator, no-any-return]

    def _sizes(self, images: Tensor, sizes: Any, name: str) -> Tensor:
        if sizes is None:
            return torch.tensor([images.shape[2:]] * len(images), device=images.device)
        given = torch.as_tensor(sizes, device=images.device)
        if given.shape != (len(images), 2) or (given < 1).any():
            raise ValueError(
                f"{name} holds a height and a width in pixels for each of the {len(images)} images; got {sizes!r}."
            )
        return given

    def _usable(self, target: Target, batch: Batch, i: int) -> Target:
        keep = target.boxes.isfinite().all(dim=1) & (target.boxes[:, 2:] > target.boxes[:, :2]).all(dim=1)
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


def create_detector(
    name: str,
    *,
    head: str | None = None,
    num_classes: int | None = None,
    image_size: Size | None = None,
    in_chans: int | None = None,
    drop_path: float | None = None,
    head_options: Mapping[str, Any] | None = None,
    weights: str | Path | Mapping[str, Any] | None = None,
    backbone_weights: str | Path | Mapping[str, Any] | None = None,
    accept_license: bool = False,
    **options: Any,
) -> Detector:
    """Build a detector by name.

    Args:
        name: a backbone, one of `list_models()`, an alias, or NAME.TAG with the published weights TAG.
        head: "retinanet" (boxes), "mask_rcnn" or "cascade" (boxes and masks); None: that of the weights where
            they say it, else "mask_rcnn".
        num_classes: classes of the head, without one for the background; None: those of the weights, without
            weights the 80 of COCO. Another number than that of the weights gives fresh scores.
        image_size, in_chans, drop_path, options: as in `create_backbone`.
        head_options: other arguments of the head's constructor (score_threshold, max_detections, ...).
        weights: of a whole detector: a tag ("coco_mask_rcnn"), a file in our layout or that of mmdetection, a URL,
            a state dict; None: the authors' initialisation. What became of every tensor is kept as
            `detector.report`, and told on standard error where something was left out or is fresh.
        backbone_weights: of a classifier to begin with: its tag ("in1k"), a file, a state dict.
        accept_license: agree to a licence that forbids commercial use; asked for once.

    Raises:
        ValueError: unknown name or option, a value the model cannot have, or weights that do not fit it.
    """
    name, dot, tag = name.partition(".")
    name = resolve(name)
    if dot and weights is not None:
        raise ValueError(f"Weights are named once: {name}.{tag}, or weights=...; got both.")
    state: State | None = None
    if dot or weights is not None:
        found = convert.find(tag if dot else weights, model=name, accept_license=accept_license)
        head = head_of(found, "detect", head)
        state = convert.state_of(found)
    head = head or "mask_rcnn"
    row = pick({key: HEADS[key] for key in DETECTORS}, head, "detection head")
    known = _num_classes(state.tensors, head) if state else COCO_CLASSES
    num_classes = known if num_classes is None else num_classes
    if num_classes < 1:
        raise ValueError(f"num_classes of a detector is 1 or more; got {num_classes!r}.")
    given = dict(head_options or {})
    takes = [p for p in inspect.signature(row).parameters if p not in ("channels", "strides", "num_classes")]
    for option in given:
        if option not in takes:
            raise ValueError(f"{head} has no option {option!r}.{suggestion(option, takes)}")
    asked = {"image_size": image_size, "in_chans": in_chans, "drop_path": drop_path, **options}
    asked = {key: value for key, value in asked.items() if value is not None}
    backbone = create_backbone(name, task="detect", **asked)
    if backbone_weights is not None:
        load_backbone(backbone.backbone, name, backbone_weights, accept_license=accept_license)
    detector = Detector(
        backbone,
        row(backbone.channels, backbone.strides, num_classes=num_classes, **given),
        name=name,
        head_name=head,
        options={**asked, **({"head_options": given} if given else {})},
    )
    detector.rest()
    if state is not None:
        report = load_weights(detector, state, fresh=SCORES if num_classes != known else ())
        if report.resized or report.dropped or report.missing:
            print(report, file=sys.stderr)
        detector.report = report
        detector.input = found.preprocess or detector.input
        detector.class_names = _class_names(found, num_classes)
    return detector


def load_weights(
    detector: Detector, source: str | Path | Mapping[str, Any] | State, *, fresh: Sequence[str] = ()
) -> Report:
    """Put the weights of a whole detector, in mmdet's layout or ours, into one of the same kind.

    fresh: patterns of names that may stay as they are.

    Returns:
        What became of every tensor.

    Raises:
        BadFile: if the file is damaged or does not fit; the tensors are named.
    """
    layouts: dict[str, DenseMap] = {}
    allow = list(fresh)
    if family(detector.name) in ADAPTERS:
        names = dense_map(LAYOUTS, family(detector.name), detector.head_name)
        layouts = {"mmdet": names}
        allow += [f"{start}*" for start in names.unused]
    return load_into(detector, source, layouts=layouts, allow=allow)


def _num_classes(tensors: Mapping[str, Tensor], head: str) -> int:
    """How many classes a detector's state dict, of either layout, tells apart; where it has no scores, COCO's."""
    ends = {"head.boxes.0.score.bias": -1, "bbox_head.fc_cls.bias": -1, "bbox_head.0.fc_cls.bias": -1}
    if head == "retinanet":
        ends = {"head.score.bias": 0, "bbox_head.retina_cls.bias": 0}
    for name, tensor in tensors.items():
        for end, extra in ends.items():
            if name.endswith(end):
                return len(tensor) // RETINANET_ANCHORS if head == "retinanet" else len(tensor) + extra
    return COCO_CLASSES


def _class_names(found: convert.Found, num_classes: int) -> tuple[str, ...]:
    """What the classes of weights that were found are called, where that is known and the number fits."""
    names = class_names(found)
    if not names and found.row and found.row.data.startswith("COCO"):
        names = coco.class_names()
    return names if len(names) == num_classes else ()


def pad(images: Tensor) -> Tensor:
    """Images with zeros right and below, up to multiples of 32 pixels."""
    return F.pad(images, (0, -images.shape[3] % PADDING, 0, -images.shape[2] % PADDING))
