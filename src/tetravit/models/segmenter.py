"""Segmenters: a class for every pixel."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tetravit.data.palettes import ade20k
from tetravit.heads.parts.conv import resize
from tetravit.heads.parts.pixels import IGNORE, to_picture
from tetravit.models.base import DenseModel
from tetravit.structures import ADE20K_INPUT
from tetravit.weights import convert

SMALLEST = 32  # pixels; minimum side accepted by all backbones


class Segmenter(DenseModel):
    """A backbone with its adapter and a segmentation head.

    Calling it returns logits (export), `segment` label maps, `loss` the training losses.
    """

    kind = "segment"
    noun = "segmenter"
    head_noun = "segmentation head"
    default_head = "upernet"
    default_classes = 150  # of ADE20K
    usual_input = ADE20K_INPUT

    @classmethod
    def check_classes(cls, num_classes: int) -> None:
        """Checked by the head: one label is reserved for ignored pixels."""

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, Hi, Wi), normalized, of any size -> logits (B, K, h, w) on the grid of the finest map."""
        return self.head(self.feature_maps(images))

    @classmethod
    def published_class_names(
        cls, resolved: convert.ResolvedWeights, layout: str, num_classes: int
    ) -> tuple[str, ...]:
        return ade20k()[0] if layout == "mmseg" else ()

    def probabilities(self, images: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """Images -> class probabilities of every pixel, (B, K, height, width) float32.

        size: height and width of the pictures; None: those of the images.
        """
        size = size or images.shape[2:]
        images = enlarged(images)
        return to_picture(self(images), images.shape[2:], size).softmax(dim=1)

    @torch.no_grad()
    def segment(self, images: Tensor, sizes: Sequence[Sequence[int]] | Tensor | None = None) -> list[Tensor]:
        """The argmax class of every pixel, (height, width) int64 for each image.

        Args:
            images: (B, C, Hi, Wi) normalized, without padding; sides below 32 pixels are enlarged to 32.
            sizes: height and width of each picture before resizing for the model; None: those of the images.

        Raises:
            ValueError: for sizes that do not match the batch.
        """
        given = [tuple(images.shape[2:])] * len(images) if sizes is None else sizes
        wanted = torch.as_tensor(given)
        if wanted.shape != (len(images), 2) or (wanted < 1).any():
            raise ValueError(
                f"sizes holds a height and a width in pixels for each of the {len(images)} images; got {sizes!r}."
            )
        images = enlarged(images)
        return self.head.decode(self(images), wanted.tolist(), images.shape[2:])

    def loss(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The head's losses; training minimises their sum.

        Args:
            images: (B, C, Hi, Wi), normalized.
            labels: (B, Hi, Wi) of any integer dtype: 0 to K - 1, or 255 for ignored pixels.

        Raises:
            ValueError: for labels of another size, or out of range.
        """
        self._check(images, labels)
        sizes = torch.stack(
            [labels.new_full((len(images),), side).long() for side in images.shape[2:]], dim=1
        )
        outputs = self.head(self.feature_maps(images), sizes, labels)
        return self.head.loss(outputs, labels, sizes)

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
    """Images (B, C, Hi, Wi) with sides of at least `SMALLEST`, enlarged bilinearly if needed."""
    return resize(images, [max(SMALLEST, side) for side in images.shape[2:]])
