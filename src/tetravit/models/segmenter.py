"""Images -> a class for every pixel."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tetravit import weights as published
from tetravit.data.palettes import ade20k
from tetravit.heads import HEADS
from tetravit.heads.parts.conv import resize
from tetravit.heads.parts.pixels import IGNORE, to_picture
from tetravit.models.build import Size, class_names, create_backbone, family, resolve
from tetravit.models.dense import DenseModel, head_of
from tetravit.models.pretrained import load_backbone
from tetravit.registry import pick
from tetravit.structures import ADE20K_INPUT
from tetravit.weights import convert, mmseg
from tetravit.weights.mmdet import ADAPTERS, UNUSED
from tetravit.weights.read import Report, State, load_into

SEGMENTERS = ("semantic_fpn", "upernet")
ADE20K_CLASSES = 150
SMALLEST = 32  # pixels; sides of images that every backbone takes
AUXILIARY_WEIGHT = 0.4  # of the published models
AUXILIARY = "head.auxiliary.*"
SCORES = ("head.score.*", "head.auxiliary.score.*")


class Segmenter(DenseModel):
    """A backbone with its adapter and a head that scores every pixel.

    Call it for logits (export), `segment` for label maps, `loss` to train.
    """

    task = "segment"
    usual_input = ADE20K_INPUT

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, Hi, Wi), normalized, of any size -> logits (B, K, h, w) at the grid of the finest map."""
        return self.head(self.feature_maps(images))  # type: ignore[no-any-return]

    def probabilities(self, images: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """Images -> the share of each class in every pixel, (B, K, height, width) float32.

        size: height and width of the pictures; None: those of the images.
        """
        size = size or images.shape[2:]
        images = enlarged(images)
        return to_picture(self(images), images.shape[2:], size).softmax(dim=1)

    @torch.no_grad()
    def segment(self, images: Tensor, sizes: Sequence[Sequence[int]] | Tensor | None = None) -> list[Tensor]:
        """The most probable class of every pixel, (height, width) int64 for each image.

        Args:
            images: (B, C, Hi, Wi) normalized, without padding; sides below 32 pixels are enlarged to them.
            sizes: height and width of each picture before it was resized for the model; None: those of the
                images.

        Raises:
            ValueError: for sizes that do not fit the batch.
        """
        given = [tuple(images.shape[2:])] * len(images) if sizes is None else sizes
        wanted = torch.as_tensor(given)
        if wanted.shape != (len(images), 2) or (wanted < 1).any():
            raise ValueError(
                f"sizes holds a height and a width in pixels for each of the {len(images)} images; got {sizes!r}."
            )
        images = enlarged(images)
        return self.head.decode(self(images), wanted.tolist(), images.shape[2:])  # type: ignore[operator, no-any-return]

    def loss(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The head's losses, whose sum is to be minimised.

        Args:
            images: (B, C, Hi, Wi), normalized.
            labels: (B, Hi, Wi) of any integer type: 0 to K - 1, or 255 for pixels without a class.

        Raises:
            ValueError: for labels of another size, or that the head does not have.
        """
        self._check(images, labels)
        maps = self.feature_maps(images)
        auxiliary = self.head.auxiliary_logits(maps)  # type: ignore[operator]
        return self.head.loss(self.head(maps), labels, auxiliary)  # type: ignore[operator, no-any-return]

    def _check(self, images: Tensor, labels: Tensor) -> None:
        size = (len(images), *images.shape[2:])
        if labels.shape != size or labels.is_floating_point():
            raise ValueError(f"labels must be integers {size}; got {labels.dtype} {tuple(labels.shape)}.")
        wrong = ((labels < 0) | (labels >= self.num_classes)) & (labels != IGNORE)
        if wrong.any():
            raise ValueError(
                f"labels are 0 to {self.num_classes - 1} for num_classes={self.num_classes}, or {IGNORE} for none;"
                f" got {int(labels[wrong][0])} among {int(wrong.sum())} wrong pixels of the batch."
            )


def enlarged(images: Tensor) -> Tensor:
    """Images (B, C, Hi, Wi), sides below `SMALLEST` brought up to it: bilinear."""
    return resize(images, [max(SMALLEST, side) for side in images.shape[2:]])


def create_segmenter(
    name: str,
    *,
    head: str | None = None,
    num_classes: int | None = None,
    weights: str | Path | Mapping[str, Any] | None = None,
    backbone_weights: str | Path | Mapping[str, Any] | None = None,
    image_size: Size | None = None,
    in_chans: int | None = None,
    drop_path: float | None = None,
    head_options: Mapping[str, Any] | None = None,
    accept_license: bool = False,
    **options: Any,
) -> Segmenter:
    """Build a segmenter by name.

    Args:
        name: a backbone, one of `list_models()`, an alias, or NAME.TAG with the published weights TAG.
        head: "semantic_fpn" or "upernet"; None: that of the weights where they are published, else "upernet".
        num_classes: classes of the head; None: those of the weights, without weights the 150 of ADE20K. Another
            number than that of the weights gives fresh scores.
        weights: of a whole segmenter: a tag ("ade20k_upernet"), a file in our layout or that of
            mmsegmentation, a URL, a state dict; None: the authors' initialisation. What became of every tensor
            is kept as `segmenter.report`, and told on standard error where something was left out or is fresh.
        backbone_weights: of a classifier to begin with: its tag ("in1k"), a file, a state dict.
        image_size, in_chans, drop_path, options: as in `create_backbone`.
        head_options: other arguments of the head's constructor (auxiliary, average, width, dropout, ...). An
            auxiliary head is built where its loss is asked for (`{"auxiliary": 0.4}`), or the weights hold one and
            it is not refused (`{"auxiliary": 0}`).
        accept_license: agree to a licence that forbids commercial use; asked for once.

    Raises:
        ValueError: unknown name or option, a value the model cannot have, or weights that do not fit.
    """
    name, dot, tag = name.partition(".")
    name = resolve(name)
    if dot and weights is not None:
        raise ValueError(f"Weights are named once: {name}.{tag}, or weights=...; got both.")
    state: State | None = None
    if dot or weights is not None:
        found = convert.find(tag if dot else weights, model=name, accept_license=accept_license)
        head = head_of(found, "segment", head)
        state = convert.state_of(found)
    tensors = state.tensors if state else {}
    head = head or "upernet"
    row = pick({key: HEADS[key] for key in SEGMENTERS}, head, "segmentation head")
    given = {"image_size": image_size, "in_chans": in_chans, "drop_path": drop_path, **options}
    asked = {key: value for key, value in given.items() if value is not None}
    backbone = create_backbone(name, task="segment", **asked)
    if backbone_weights is not None:
        load_backbone(backbone.backbone, name, backbone_weights, accept_license=accept_license)
    head_options = dict(head_options or {})
    if mmseg.has_auxiliary(tensors):
        head_options.setdefault("auxiliary", AUXILIARY_WEIGHT)
    known = mmseg.num_classes(tensors) or ADE20K_CLASSES
    num_classes = known if num_classes is None else num_classes
    model = Segmenter(
        backbone,
        row(backbone.channels, backbone.strides, num_classes=num_classes, **head_options),
        name=name,
        head_name=head,
        options={**asked, **({"head_options": head_options} if head_options else {})},
    )
    model.rest()
    if state is not None:
        model.report = _load(model, state, head, fresh=num_classes != known)
        model.input = found.preprocess or model.input
        published_names = ade20k()[0] if model.report.layout == "mmseg" else ()
        names = class_names(found) or published_names
        model.class_names = names if len(names) == num_classes else ()
    return model


def _load(model: Segmenter, state: State, head: str, *, fresh: bool) -> Report:
    """Weights into `model`; `fresh`: not those of the scores."""
    kind = family(model.name)
    layouts = {"mmseg": mmseg.segmentor_map(published.LAYOUTS, kind, head)} if kind in ADAPTERS else {}
    unused = tuple(f"{start}*" for start in UNUSED.get(kind, ()))
    idle = () if model.head.auxiliary is not None else (AUXILIARY,)
    report = load_into(model, state, layouts=layouts, allow=(*unused, *idle, *(SCORES if fresh else ())))
    if report.resized or report.dropped or report.missing:
        print(report, file=sys.stderr)
    return report
