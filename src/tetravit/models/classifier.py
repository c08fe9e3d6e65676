"""Images -> class scores."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self, overload

from torch import Tensor, nn

from tetravit.backbones.base import Backbone
from tetravit.heads.classify import Embedding, LinearHead
from tetravit.structures import Kind, Preprocess
from tetravit.weights.read import Report


class Classifier(nn.Module):
    """A backbone and a linear head: images (B, in_chans, Hi, Wi) -> logits (B, K).

    With `num_classes=0` the answer is the embedding (B, embed_dim). A backbone with a distillation token has a
    second head, `head_dist`, for it; the answer is then the mean of both heads' logits.

    name, options: the arguments of `create_model` that build it again. class_names: one per class, where
    known. input: what its weights expect of a picture; `preprocess` does it.

    Raises:
        ValueError: if `num_classes` is negative.
    """

    task: ClassVar[Kind] = "classify"

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        name: str = "",
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.name, self.options = name, dict(options or {})
        self.class_names: tuple[str, ...] = ()
        self.input = Preprocess()
        self.report: Report | None = None
        self.reset_head(num_classes)

    def reset_head(self, num_classes: int) -> None:
        """A fresh head for another number of classes; 0 for none."""
        if num_classes < 0:
            raise ValueError(f"num_classes is 0 (embeddings) or more; got {num_classes}.")
        self.num_classes = num_classes
        self.class_names = ()
        dim = self.backbone.embed_dim
        self.head: nn.Module = LinearHead(dim, num_classes) if num_classes else Embedding()
        two = num_classes and self.backbone.num_embeddings == 2
        self.head_dist = LinearHead(dim, num_classes) if two else None

    @overload
    def forward(self, images: Tensor, heads: Literal["mean"] = "mean") -> Tensor: ...

    @overload
    def forward(self, images: Tensor, heads: Literal["each"]) -> tuple[Tensor, Tensor]: ...

    def forward(
        self, images: Tensor, heads: Literal["mean", "each"] = "mean"
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Images -> logits; `each`: those of the class token and of the distillation token, which has a teacher.

        Where one head is all there is, `each` gives its logits twice.
        """
        if self.head_dist is None:
            logits = self.head(self.backbone(images))
            return logits if heads == "mean" else (logits, logits)
        first, second = self.backbone.embeddings(images)
        logits, taught = self.head(first), self.head_dist(second)
        return (logits + taught) / 2 if heads == "mean" else (logits, taught)

    def preprocess(self, image: Any) -> Tensor:
        """A picture (path, Pillow image, array, tensor) -> float (3, Hi, Wi), as the weights were trained for.

        Raises:
            ValueError: if the picture cannot be read, or is not one.
        """
        from tetravit.data.preprocess import preprocess  # torchvision loads only where a picture is read

        return preprocess(image, self.input)

    def forward_features(self, images: Tensor) -> Tensor:
        """Images -> normed tokens (B, N, C) before pooling."""
        return self.backbone.forward_features(images)

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """Images -> the backbone's own maps, shallow to deep."""
        return self.backbone.feature_maps(images)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are never decayed, beyond biases and norms."""
        return {f"backbone.{name}" for name in self.backbone.no_weight_decay()}

    def set_grad_checkpointing(self, mode: bool = True) -> Self:
        """Recompute the backbone's blocks in the backward pass: less memory, about a third more time."""
        self.backbone.set_grad_checkpointing(mode)
        return self
