"""Images -> class scores."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal, Self, overload

from torch import Tensor, nn

from tetravit.backbones.base import Backbone
from tetravit.data import imagenet
from tetravit.heads import Head, heads_of
from tetravit.heads.classify import Embedding
from tetravit.models.base import Model
from tetravit.models.names import build_backbone
from tetravit.models.portable import LARGEST, SMALLEST
from tetravit.registry import pick
from tetravit.structures import Preprocess
from tetravit.weights import LAYOUTS, convert
from tetravit.weights.fileformat import Header
from tetravit.weights.read import Names

LINEAR = "linear"  # the head of the papers; not named in files


class Classifier(Model):
    """A backbone with a classifier head: images (B, in_chans, Hi, Wi) -> logits (B, K).

    With `num_classes=0` there is no head, and the output is the embedding (B, embed_dim). A backbone with a
    distillation token has a second head, `head_dist`; the output is the mean of both heads' logits.

    name, options: arguments of `create_model`. head_name: one of `heads_of("classify")`.

    Raises:
        ValueError: if `num_classes` is negative, or the head is unknown.
    """

    kind = "classify"
    noun = "classifier"
    head_noun = "classification head"
    default_head = LINEAR
    default_classes = 1000

    @property
    def program_sides(self) -> range:
        """From 64 pixels; from its own size if that is smaller and the coarsest map has more than one cell."""
        own = min(SMALLEST, *self.input.sides)
        return range(max(own, 2 * self.backbone.strides[-1]), LARGEST + 1)

    usual_input = Preprocess()

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        name: str = "",
        head_name: str = LINEAR,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(name=name, head_name=head_name, options=options)
        self.backbone = backbone
        self.set_input(None)
        self.reset_head(num_classes)

    @classmethod
    def build(
        cls,
        name: str,
        options: Mapping[str, Any],
        *,
        head: str,
        head_options: Mapping[str, Any],
        num_classes: int,
        fill: Callable[[Backbone], Any] | None = None,
    ) -> Self:
        backbone = build_backbone(name, **options)
        if fill is not None:
            fill(backbone)
        given = {**options, **({"head_options": dict(head_options)} if head_options else {})}
        model = cls(backbone, num_classes, name=name, head_name=head, options=given)
        model.set_input(None)
        return model

    def set_input(self, input: Preprocess | None) -> None:
        """As in `Model`; a configured image size is kept."""
        super().set_input(input)
        size = self.options.get("image_size")
        if size is not None:
            self.input = replace(self.input, size=size)

    @classmethod
    def layouts_of(cls, family: str, head: str) -> Mapping[str, Names]:
        return LAYOUTS.get(family, {})

    @classmethod
    def beside_backbone(cls, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: value for name, value in state.items() if "head" in name}

    def reset_head(self, num_classes: int) -> None:
        """Replace the head for another number of classes, with the backbone's dtype and device; 0: no head."""
        if num_classes < 0:
            raise ValueError(f"num_classes is 0 (embeddings) or more; got {num_classes}.")
        self.num_classes = num_classes
        self.class_names, self.thresholds = (), ()
        self.head: nn.Module = self._fresh_head() if num_classes else Embedding()
        two = num_classes and self.backbone.num_embeddings == 2
        self.head_dist = self._fresh_head() if two else None

    def _fresh_head(self) -> Head:
        row: Any = pick(heads_of("classify"), self.head_name, "classification head")
        head: Head = row(self.backbone.embed_dim, self.num_classes, **self.options.get("head_options", {}))
        like = next((p for p in self.backbone.parameters() if p.is_floating_point()), None)
        own = next(head.parameters(), None)
        if like is not None and own is not None and (own.device, own.dtype) != (like.device, like.dtype):
            head = head.to(like.device, like.dtype)  # only if needed: meta parameters cannot be moved
        return head.train(self.training)

    @overload
    def forward(self, images: Tensor, heads: Literal["mean"] = "mean") -> Tensor: ...

    @overload
    def forward(self, images: Tensor, heads: Literal["each"]) -> tuple[Tensor, Tensor]: ...

    def forward(
        self, images: Tensor, heads: Literal["mean", "each"] = "mean"
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Images -> logits; `each`: those of the class token and of the distillation token (trained with a teacher).

        With one head, `each` returns its logits twice.
        """
        if self.head_dist is None:
            logits = self.head(self.backbone(images))
            return logits if heads == "mean" else (logits, logits)
        first, second = self.backbone.embeddings(images)
        logits, distilled = self.head(first), self.head_dist(second)
        return (logits + distilled) / 2 if heads == "mean" else (logits, distilled)

    def header(self, *, recipe: str = "", licence: str = "", source: str = "") -> Header:
        header = super().header(recipe=recipe, licence=licence, source=source)
        return replace(header, head=None) if self.head_name == LINEAR else header

    @classmethod
    def published_class_names(
        cls, resolved: convert.ResolvedWeights, layout: str, num_classes: int
    ) -> tuple[str, ...]:
        return imagenet.class_names() if resolved.imagenet else ()

    def usual_sides(self, otherwise: int) -> tuple[int, int]:
        return self.input.sides

    def forward_features(self, images: Tensor) -> Tensor:
        """Images -> normed tokens (B, N, C) before pooling."""
        return self.backbone.forward_features(images)

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """Images -> the backbone's feature maps, shallow to deep."""
        return self.backbone.feature_maps(images)
