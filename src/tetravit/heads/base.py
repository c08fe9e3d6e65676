"""The contract of a head: feature maps or an embedding -> predictions, with a training loss.

Shapes: B images, C channels, K classes, P detections, (Hi, Wi) an image in pixels, h w the grid of the logits.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar

from torch import Tensor, nn

from tetravit.structures import Kind

Gather = Callable[[Any], list[Any]]  # plain data of this rank -> those of all ranks


class Head(nn.Module):
    """Predictions of one kind, with loss and decoding.

    Heads are built by name: `head(embed_dim, num_classes, **options)` if `kind` is "classify", else `head(channels,
    strides, num_classes=num_classes, **options)` for four maps at strides 4, 8, 16, 32. `options` are keyword
    arguments of its constructor.

    kind: type of predictions. has_masks: a detection head with `mask_probabilities`. first_map: number of maps, from
    the finest, that are not used. fresh: shell patterns of tensors, relative to the head, whose shape depends on the
    number of classes: they are initialised anew when it changes. optional: patterns of tensors that exist only with
    certain options; weights may contain them without need. fixed_options: those of `options_in` that must match the
    weights. least_side: minimum side in pixels of a detector's images in one graph for all sizes: the coarsest level
    then has more than one cell.
    """

    kind: ClassVar[Kind]
    has_masks: ClassVar[bool] = False
    first_map: int = 0
    fresh: ClassVar[tuple[str, ...]] = ()
    optional: ClassVar[tuple[str, ...]] = ()
    fixed_options: ClassVar[tuple[str, ...]] = ()
    least_side: ClassVar[int] = 160
    num_classes: int

    def forward(self, maps: Any, sizes: Any = None, targets: Any = None) -> Any:
        """Compute the outputs for `loss` and `decode`.

        Args:
            maps: four maps (B, C, H, W), fine to coarse; for a classifier the embedding (B, C).
            sizes: (B, 2) int64, height and width of each image without its padding; None: unknown.
            targets: in training the targets of `loss`, else None.

        Returns:
            Outputs for the head's own `loss` and `decode`. Without `targets`: logits (B, K) of a classifier, logits
            (B, K, h, w) of a segmenter.
        """
        raise NotImplementedError

    def loss(self, outputs: Any, targets: Any, sizes: Any) -> dict[str, Tensor]:
        """Weighted losses, scalars; training minimises their sum.

        Args:
            outputs: from `forward`.
            targets: "classify": labels (B,) int64 or soft labels (B, K). "segment": label maps (B, Hi, Wi) of
                integers, 255 for none. "detect": a `Target` per image, boxes in pixels of the batch.
            sizes: (B, 2) int64, height and width of each image without its padding.
        """
        raise NotImplementedError

    def decode(self, outputs: Any, *args: Any, **options: Any) -> Any:
        """Decode predictions, in pixels.

        Args:
            outputs: from `forward`.
            args: "detect": sizes (B, 2) int64, height and width of each image without its padding. "segment":
                height and width of each label map, then those of the model's input.
            options: "detect": `max_detections` and, for heads with NMS, `class_agnostic`; None: the head's own.

        Returns:
            "classify": probabilities (B, K). "segment": label maps int64, one per image. "detect":
            `boxes.suppression.SelectedBoxes`.
        """
        raise NotImplementedError

    def mask_probabilities(self, outputs: Any, boxes: Tensor, labels: Tensor) -> Tensor:
        """Masks of boxes (B, P, 4) with labels (B, P): probabilities (B, P, 28, 28), each relative to its box."""
        raise NotImplementedError

    def steps(
        self, outputs: Any, sizes: Tensor, max_detections: int | None = None
    ) -> tuple[Tensor, Tensor] | None:
        """For a head with iterative box refinement: the queries (B, P) selected by `decode`, and their boxes
        (S, B, P, 4) in pixels after each step. None: other heads.
        """
        return None

    def whole_step(self, targets: Sequence[Sequence[Any]], gather: Gather) -> AbstractContextManager[None]:
        """Context of a micro-batch in a training step, for heads whose loss depends on the other micro-batches.

        targets: of every micro-batch of this rank. gather: a collective: plain data of this rank -> those of all
        ranks.
        """
        return nullcontext()

    def set_grad_checkpointing(self, mode: bool = True) -> None:
        """Recompute memory-intensive parts in the backward pass; no effect if they are small."""

    @classmethod
    def classes_in(cls, state: Mapping[str, Tensor]) -> int | None:
        """The number of classes in a state dict, names relative to the head; None: no class scores."""
        return None

    @classmethod
    def options_in(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Constructor options that a state dict implies, names relative to the head."""
        return {}


class DetectionHead(Head):
    """A detection head.

    max_detections: per image. class_agnostic: whether NMS suppresses overlapping boxes of all classes, or of the same
    class only.
    """

    kind = "detect"
    max_detections: int = 100
    class_agnostic: bool = False
    _gather: Gather | None = None  # of the current step

    @contextmanager
    def whole_step(self, targets: Sequence[Sequence[Any]], gather: Gather) -> Iterator[None]:
        self._gather = gather
        try:
            yield
        finally:
            self._gather = None

    def rank_means(self, *counts: int) -> list[float]:
        """Each count of a micro-batch averaged over the ranks (a collective); unchanged outside a step.

        A sum divided by such a mean is this rank's share of a per-candidate loss: the mean over ranks is the loss of
        all images, independent of the number of ranks.
        """
        if self._gather is None:
            return list(counts)
        ranks = self._gather(counts)
        return [sum(column) / len(ranks) for column in zip(*ranks, strict=True)]

    def limits(self, max_detections: int | None, class_agnostic: bool | None) -> tuple[int, bool]:
        """The arguments of `decode`, with None replaced by the head's own.

        Raises:
            ValueError: if `max_detections` is below 1.
        """
        most = self.max_detections if max_detections is None else max_detections
        if most < 1:
            raise ValueError(f"max_detections is 1 or more; got {most!r}.")
        return most, self.class_agnostic if class_agnostic is None else class_agnostic


def count_rows(state: Mapping[str, Tensor], names: Sequence[str]) -> int | None:
    """Number of rows of the first tensor of `names` in a state dict; None: no such tensor."""
    return next((len(state[name]) for name in names if name in state), None)
