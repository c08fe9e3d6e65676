"""Components of segmentation heads: class scores, auxiliary head, cross entropy, label maps.

Shapes: K classes, h w the grid of the logits, Hi Wi the image in pixels.
Source: mmsegmentation 0.30.0, BaseDecodeHead, FCNHead and cross_entropy.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, get_args, overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tetravit.heads.base import Head, count_rows
from tetravit.heads.parts.conv import ConvNorm, resize, score_conv
from tetravit.layers.dropout import Dropout2d

IGNORE = 255  # label of ignored pixels
AUXILIARY_LEVEL = 2  # of the four maps, the one with stride 16
AUXILIARY_WEIGHT = 0.4  # of the published models
BAND = 2**26  # maximum number of logits resized at once for a label map: 256 MiB in float32

Average = Literal["all", "valid"]


class SegmentationOutputs(NamedTuple):
    """Training outputs of a segmentation head. auxiliary: logits of the auxiliary head, or None."""

    logits: Tensor  # (B, K, h, w)
    auxiliary: Tensor | None  # (B, K, h / 4, w / 4)


class FCN(nn.Module):
    """The auxiliary head: one convolution and class scores, used in training only."""

    def __init__(self, channels: int, num_classes: int, *, width: int, dropout: float) -> None:
        super().__init__()
        self.conv = ConvNorm(channels, width, 3)
        self.dropout = Dropout2d(dropout)
        self.score = score_conv(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) -> logits (B, K, H, W)."""
        return self.score(self.dropout(self.conv(x)))


class PixelHead(Head):
    """Maps -> logits (B, K, h, w) on the grid of the finest map. Subclasses define `features`.

    dropout: channel dropout rate before the class scores. auxiliary: loss weight of an `FCN` on the third map; 0:
    none. average: "all": average the loss over all pixels, ignored ones included, as for the published models;
    "valid": over labelled pixels.

    Raises:
        ValueError: for an invalid option.
    """

    kind = "segment"
    fresh = ("score.*", "auxiliary.score.*")
    optional = ("auxiliary.*",)

    def __init__(
        self,
        channels: Sequence[int],
        width: int,
        *,
        num_classes: int,
        dropout: float,
        auxiliary: float,
        average: Average,
    ) -> None:
        super().__init__()
        if not 1 <= num_classes <= IGNORE:
            raise ValueError(f"num_classes of a segmenter is 1 to {IGNORE}; got {num_classes!r}.")
        if average not in get_args(Average):
            raise ValueError(f"average is one of {', '.join(get_args(Average))}; got {average!r}.")
        if auxiliary < 0:
            raise ValueError(f"auxiliary is a weight of 0 (none) or more; got {auxiliary!r}.")
        self.num_classes, self.average, self.auxiliary_weight = num_classes, average, auxiliary
        self.dropout = Dropout2d(dropout)
        self.score = score_conv(width, num_classes)
        self.auxiliary: FCN | None = None
        if auxiliary:
            self.auxiliary = FCN(channels[AUXILIARY_LEVEL], num_classes, width=256, dropout=dropout)

    def features(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps at strides 4, 8, 16, 32 -> features (B, width, h, w)."""
        raise NotImplementedError

    @overload
    def forward(self, maps: Sequence[Tensor], sizes: Any = None, targets: None = None) -> Tensor: ...

    @overload
    def forward(self, maps: Sequence[Tensor], sizes: Any, targets: Tensor) -> SegmentationOutputs: ...

    def forward(
        self, maps: Sequence[Tensor], sizes: Any = None, targets: Tensor | None = None
    ) -> Tensor | SegmentationOutputs:
        """Maps at strides 4, 8, 16, 32 -> logits (B, K, h, w); with `targets` those of the auxiliary head too."""
        auxiliary = None if targets is None else self.auxiliary_logits(maps)
        logits: Tensor = self.score(self.dropout(self.features(maps)))
        return logits if targets is None else SegmentationOutputs(logits, auxiliary)

    def auxiliary_logits(self, maps: Sequence[Tensor]) -> Tensor | None:
        """Maps -> logits (B, K, h / 4, w / 4) of the auxiliary head, or None."""
        return None if self.auxiliary is None else self.auxiliary(maps[AUXILIARY_LEVEL])

    def loss(
        self, outputs: Tensor | SegmentationOutputs, labels: Tensor, sizes: Any = None
    ) -> dict[str, Tensor]:
        """Cross entropy at the resolution of the labels (B, Hi, Wi), 0 to K - 1 or `IGNORE`; the auxiliary loss is
        weighted."""
        logits, auxiliary = (outputs, None) if isinstance(outputs, Tensor) else outputs
        losses = {"loss_class": self._cross_entropy(logits, labels)}
        if auxiliary is not None:
            losses["loss_auxiliary"] = self.auxiliary_weight * self._cross_entropy(auxiliary, labels)
        return losses

    def decode(
        self, logits: Tensor, sizes: Sequence[Sequence[int]], image_size: Sequence[int]
    ) -> list[Tensor]:
        """The argmax class of every pixel, (height, width) int64 for each of `sizes`; see `to_picture`."""
        return [most_probable([View(x, image_size)], size) for x, size in zip(logits, sizes, strict=True)]

    @classmethod
    def classes_in(cls, state: Mapping[str, Tensor]) -> int | None:
        return count_rows(state, ["score.weight"])

    @classmethod
    def options_in(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """The auxiliary head, with the weight used for the published models."""
        held = any(name.startswith("auxiliary.") for name in state)
        return {"auxiliary": AUXILIARY_WEIGHT} if held else {}

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        logits, labels = resize(logits.float(), labels.shape[1:]), labels.long()
        total = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")
        if self.average == "all":
            return total / labels.numel()
        return total / (labels != IGNORE).sum().clamp(min=1)


def to_picture(logits: Tensor, image_size: Sequence[int], size: Sequence[int]) -> Tensor:
    """Logits (B, K, h, w) -> (B, K, height, width) float32 at the resolution of the picture.

    image_size: height and width of the model's input, to which the logits are resized first, as in the published
    evaluation: if the grid of the logits extends beyond the image, the result differs from a single resize.
    """
    return resize(resize(logits.float(), image_size), size)


class View(NamedTuple):
    """Logits of one view of a picture. logits: (K, h, w). image_size: height and width of the model's input.

    mirrored: the input was flipped horizontally.
    """

    logits: Tensor
    image_size: Sequence[int]
    mirrored: bool = False


def most_probable(views: Sequence[View], size: Sequence[int]) -> Tensor:
    """The class (height, width) int64 with the highest mean probability over all views of a picture.

    Computed in bands of rows to limit memory.
    """
    height = size[0]
    tallest, widest = (max(size[side], *(view.image_size[side] for view in views)) for side in (0, 1))
    rows = max(1, BAND // (len(views[0].logits) * widest))
    if rows >= tallest:
        return _best(views, lambda view: to_picture(view.logits[None], view.image_size, size)[0])
    bands = []
    for start in range(0, height, rows):
        stop = min(start + rows, height)
        bands.append(_best(views, partial(_band, start=start, stop=stop, size=size)))
    return torch.cat(bands)


def _best(views: Sequence[View], scores: Callable[[View], Tensor]) -> Tensor:
    """The class (rows, width) with the highest mean probability; `scores` (K, rows, width) are computed per view."""
    if len(views) == 1:  # softmax does not change the argmax
        x = scores(views[0])
        return (x.flip(2) if views[0].mirrored else x).argmax(dim=0)
    total: Tensor | None = None
    for view in views:
        x = scores(view).softmax(dim=0)
        x = x.flip(2) if view.mirrored else x
        total = x if total is None else total.add_(x)
        del x  # free before computing the next view
    assert total is not None
    return total.argmax(dim=0)


def _band(view: View, start: int, stop: int, size: Sequence[int]) -> Tensor:
    """Rows `start` to `stop` of `to_picture`, (K, rows, width)."""
    logits, (image_height, image_width) = view.logits, view.image_size
    y = _places(torch.arange(start, stop, device=logits.device), image_height, size[0])
    first, last = int(y[0]), min(int(y[-1]) + 1, image_height - 1)
    between = torch.arange(first, last + 1, device=logits.device)
    band = _rows(logits.float(), _places(between, logits.shape[1], image_height), image_width)
    return _rows(band, y - first, size[1])


def _places(rows: Tensor, old: int, new: int) -> Tensor:
    """Source positions of the rows when resizing from `old` to `new` rows."""
    return ((rows + 0.5) * (old / new) - 0.5).clamp(min=0)


def _rows(x: Tensor, y: Tensor, width: int) -> Tensor:
    """Rows of a map (K, h, w) sampled at positions `y` -> (K, len(y), width), bilinear."""
    above = y.long()
    below = (above + 1).clamp(max=x.shape[1] - 1)
    band = torch.lerp(x[:, above], x[:, below], (y - above)[:, None])
    return resize(band[None], (len(y), width))[0]
