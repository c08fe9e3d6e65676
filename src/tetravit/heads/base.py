"""The contract of a head. A head turns feature maps, or an embedding, into predictions, and trains on targets.

Shapes: B images, C channels, K classes, P detections, (Hi, Wi) an image in pixels, h w the grid of the logits.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar

from torch import Tensor, nn

from tetravit.structures import Kind

Gather = Callable[[Any], list[Any]]  # plain data of this rank -> those of all ranks


class Head(nn.Module):
    """Predictions of one kind, with their loss and their decoding.

    A head of a file in this folder is built by name: with `head(embed_dim, num_classes, **options)` where `kind` is
    "classify", else with `head(channels, strides, num_classes=num_classes, **options)` for the four maps at strides
    4, 8, 16, 32. `options` are the keyword arguments of its constructor.

    kind: what it predicts. has_masks: a detection head with `mask_probabilities`. first_map: how many of the maps,
    from the finest, are not used. fresh: shell patterns of its tensors, relative to the head, whose shape depends
    on the number of classes: they start fresh when that changes. optional: patterns of tensors that a head built
    with other options has, and weights may hold in excess. fixed_options: those of `options_in` that weights of
    another value cannot be loaded into.
    """

    kind: ClassVar[Kind]
    has_masks: ClassVar[bool] = False
    first_map: int = 0
    fresh: ClassVar[tuple[str, ...]] = ()
    optional: ClassVar[tuple[str, ...]] = ()
    fixed_options: ClassVar[tuple[str, ...]] = ()
    num_classes: int

    def forward(self, maps: Any, sizes: Any = None, targets: Any = None) -> Any:
        """The outputs that `loss` and `decode` take.

        Args:
            maps: four maps (B, C, H, W), fine to coarse; for a classifier the embedding (B, C).
            sizes: (B, 2) int64, height and width of each image without its padding; None: not known.
            targets: in training what `loss` takes, else None.

        Returns:
            Whatever the head's own `loss` and `decode` take. Without `targets` a classifier's are logits (B, K), a
            segmenter's logits (B, K, h, w).
        """
        raise NotImplementedError

    def loss(self, outputs: Any, targets: Any, sizes: Any) -> dict[str, Tensor]:
        """The weighted losses, scalars whose sum is minimised.

        Args:
            outputs: of `forward`.
            targets: "classify": labels (B,) int64 or soft labels (B, K). "segment": label maps (B, Hi, Wi) of
                integers, 255 for none. "detect": a `Target` per image, boxes in pixels of the batch.
            sizes: (B, 2) int64, height and width of each image without its padding.
        """
        raise NotImplementedError

    def decode(self, outputs: Any, *args: Any, **options: Any) -> Any:
        """Predictions in pixels.

        Args:
            outputs: of `forward`.
            args: "detect": sizes (B, 2) int64, height and width of each image without its padding. "segment":
                height and width of each label map, then those of the model's input.
            options: "detect": `max_detections` and, where overlapping boxes are suppressed, `class_agnostic`; None:
                the head's own.

        Returns:
            "classify": probabilities (B, K). "segment": label maps int64, one per image. "detect":
            `boxes.suppression.SelectedBoxes`.
        """
        raise NotImplementedError

    def mask_probabilities(self, outputs: Any, boxes: Tensor, labels: Tensor) -> Tensor:
        """The masks of boxes (B, P, 4) with labels (B, P): probabilities (B, P, 28, 28), each in its box's frame."""
        raise NotImplementedError

    def steps(
        self, outputs: Any, sizes: Tensor, max_detections: int | None = None
    ) -> tuple[Tensor, Tensor] | None:
        """Of a head that refines boxes step by step: the queries (B, P) of what `decode` selects, and their boxes
        (S, B, P, 4) in pixels, from the first ones to the last. None: it does not.
        """
        return None

    def whole_step(self, targets: Sequence[Sequence[Any]], gather: Gather) -> AbstractContextManager[None]:
        """Around each micro-batch of a training step, for a head whose loss depends on the other ones.

        targets: of every micro-batch of this rank. gather: plain data of this rank -> those of all, which call it
        together.
        """
        return nullcontext()

    def set_grad_checkpointing(self, mode: bool = True) -> None:
        """Recompute what takes most memory in the backward pass; without effect where that is little."""

    @classmethod
    def classes_in(cls, state: Mapping[str, Tensor]) -> int | None:
        """The number of classes in a state dict, names relative to the head; None: it holds no such scores."""
        return None

    @classmethod
    def options_in(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Options of the constructor that a state dict implies, names relative to the head."""
        return {}


class DetectionHead(Head):
    """A head that finds objects.

    max_detections: the most per image. class_agnostic: whether an object suppresses overlapping ones of every class,
    or of its own alone.
    """

    kind = "detect"
    max_detections: int = 100
    class_agnostic: bool = False
    _gather: Gather | None = None  # of the step under way

    @contextmanager
    def whole_step(self, targets: Sequence[Sequence[Any]], gather: Gather) -> Iterator[None]:
        self._gather = gather
        try:
            yield
        finally:
            self._gather = None

    def rank_means(self, *counts: int) -> list[float]:
        """Each count of a micro-batch as its mean over the ranks, which call this together; outside a step as it is.

        A sum divided by such a mean is the share of this rank in a loss per candidate: the mean of the shares is the
        loss of all images, however many ranks they are spread over.
        """
        if self._gather is None:
            return list(counts)
        ranks = self._gather(counts)
        return [sum(column) / len(ranks) for column in zip(*ranks, strict=True)]

    def limits(self, max_detections: int | None, class_agnostic: bool | None) -> tuple[int, bool]:
        """The arguments of `decode`, None replaced by the head's own.

        Raises:
            ValueError: if `max_detections` is below 1.
        """
        most = self.max_detections if max_detections is None else max_detections
        if most < 1:
            raise ValueError(f"max_detections is 1 or more; got {most!r}.")
        return most, self.class_agnostic if class_agnostic is None else class_agnostic


def count_rows(state: Mapping[str, Tensor], names: Sequence[str]) -> int | None:
    """Rows of the first tensor of `names` that is in a state dict; None: none is."""
    return next((len(state[name]) for name in names if name in state), None)
