"""Plain records shared by all layers. One file: a reader of any signature finds its records in one place."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, Self

if TYPE_CHECKING:
    import torch
    from torch import Tensor


IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

GRAY_MEAN, GRAY_STD = 0.449, 0.226  # the means of the three
Kind = Literal["classify", "segment", "detect"]  # what is known of an image: a class, a label map, objects
DataKind = Literal[
    "classify", "segment", "detect", "unlabelled"
]  # the same of a data set; or nothing is known


@dataclass(frozen=True)
class Preprocess:
    """The preprocessing of some weights: from a picture to the input tensor.

    size: side of the square that the model gets, in pixels, or (height, width). crop: the share of the resized image
    that the centre crop keeps (resize so that it covers size / crop, then crop), in (0, 1]. mode: `center` keeps the
    aspect ratio and crops; `squash` resizes to `size`; `fit` keeps the ratio and all of the image, the short side
    `size` pixels or less, the long side `longest` or less. mean, std: per channel, of values in [0, 1].
    """

    size: int | tuple[int, int] = 224
    crop: float = 0.875
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    mode: Literal["center", "squash", "fit"] = "center"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    longest: int | None = None

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of what the model gets; of mode `fit` the short side, twice."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    @property
    def channels(self) -> int:
        return len(self.mean)


def usual_colours(channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation per channel where none are given: of ImageNet, for other than three channels their means."""
    if channels == 3:
        return IMAGENET_MEAN, IMAGENET_STD
    return (GRAY_MEAN,) * channels, (GRAY_STD,) * channels


def for_channels(p: Preprocess, channels: int) -> Preprocess:
    """The preprocessing for images of so many channels: as it is, or with the usual mean and deviation."""
    if p.channels == channels:
        return p
    mean, std = usual_colours(channels)
    return replace(p, mean=mean, std=std)


# How the published models of dense tasks see a picture.
ADE20K_INPUT = Preprocess(size=512, longest=2048, mode="fit", interpolation="bilinear")
COCO_INPUT = Preprocess(size=800, longest=1333, mode="fit", interpolation="bilinear")


@dataclass
class Target:
    """What an image of a dense task holds. M objects; all sizes in pixels of the image beside it."""

    boxes: Tensor  # (M, 4) float, x1 y1 x2 y2
    labels: Tensor  # (M,) int64, counted from 0
    masks: Tensor | None = None  # (M, Hi, Wi) bool
    crowd: Tensor | None = None  # (M,) bool: a region of many objects, evaluated apart
    area: Tensor | None = None  # (M,) float, as annotated
    image_id: int = -1
    size: tuple[int, int] | None = None  # (height, width) of the original image


@dataclass
class Detections:
    """The objects of one image. Boxes in absolute pixels x1 y1 x2 y2; labels counted from 0."""

    boxes: Tensor  # (M, 4) float
    scores: Tensor  # (M,) float in [0, 1]
    labels: Tensor  # (M,) int64
    masks: Tensor | None = None  # (M, Hi, Wi) bool
    steps: Tensor | None = (
        None  # (S, M, 4): how the boxes came about, the last as in `boxes`; only if asked for
    )

    def to_supervision(self, class_names: Sequence[str] = ()) -> Any:
        """As `supervision.Detections`, which annotates, counts and tracks (package supervision).

        Raises:
            ValueError: if the package is not installed.
        """
        import numpy as np

        try:
            import supervision
        except ImportError:
            raise ValueError(
                "to_supervision needs the package supervision: pip install supervision."
            ) from None
        names = (
            {"class_name": np.array([class_names[i] for i in self.labels.tolist()])} if class_names else {}
        )
        return supervision.Detections(
            xyxy=self.boxes.cpu().float().numpy().reshape(-1, 4),
            mask=None if self.masks is None else self.masks.cpu().numpy(),
            confidence=self.scores.cpu().float().numpy(),
            class_id=self.labels.cpu().numpy(),
            data=names,
        )

    def to_coco(self, image_id: int, category_ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """The rows of a COCO results file, which pycocotools, FiftyOne and CVAT read.

        Args:
            image_id: of the image.
            category_ids: of each class; None: the classes count from 1.

        Returns:
            Per object image_id, category_id, bbox (x y w h in pixels), score; with masks segmentation (RLE).
        """
        from tetravit.rle import encode_masks

        rows: list[dict[str, Any]] = []
        for i, (box, label) in enumerate(zip(self.boxes.tolist(), self.labels.tolist(), strict=True)):
            x1, y1, x2, y2 = box
            row = {
                "image_id": image_id,
                "category_id": label + 1 if category_ids is None else category_ids[label],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": float(self.scores[i]),
            }
            if self.masks is not None:
                counts = encode_masks(self.masks[i : i + 1])[0].decode("ascii")
                row["segmentation"] = {"size": list(self.masks.shape[1:]), "counts": counts}
            rows.append(row)
        return rows

    def to_labelme(
        self, image_path: str, size: tuple[int, int], class_names: Sequence[str] = ()
    ) -> dict[str, Any]:
        """The content of a LabelMe file: rectangles to correct by hand.

        Args:
            image_path: as the file names it, relative to itself.
            size: (height, width) of the image.
            class_names: one per class; empty: numbers.
        """
        shapes: list[dict[str, Any]] = [
            {
                "label": class_names[label] if class_names else str(label),
                "points": [[x1, y1], [x2, y2]],
                "group_id": None,
                "description": f"score {float(self.scores[i]):.3f}",
                "shape_type": "rectangle",
                "flags": {},
            }
            for i, ((x1, y1, x2, y2), label) in enumerate(
                zip(self.boxes.tolist(), self.labels.tolist(), strict=True)
            )
        ]
        return {
            "version": "5.0.1",
            "flags": {},
            "shapes": shapes,
            "imagePath": image_path,
            "imageData": None,
            "imageHeight": size[0],
            "imageWidth": size[1],
        }


@dataclass
class Sample:
    """One item of a data set, before it joins a batch."""

    image: Tensor  # (C, Hi, Wi): uint8 from the data set, float after the transforms
    target: Any  # a class index, a label map (Hi, Wi) of integers, a Target
    name: str  # what to call it in a message: a path, or "digits/train/17"


@dataclass
class Finish:
    """What is left to do for images (B, C, Hi, Wi) of uint8: the values of `normalize`, then of `erase`.

    The results are those of the transforms, bit for bit on a CPU; workers send a quarter of the bytes.

    mean, std: (C, 1, 1). patches: row, top, left and values (C, h, w) of each rectangle that is erased.
    """

    mean: Tensor
    std: Tensor
    patches: list[tuple[int, int, int, Tensor]] = field(default_factory=list)

    def __call__(self, images: Tensor, sizes: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """Normalized float images on the device of `images`; what `sizes` (B, 2) leave of each is 0.

        out: (B, C, Hi, Wi) float32, filled and returned; None: a new tensor.
        """
        import torch  # records alone need none of it

        device = images.device
        mean, std = (x.to(device, non_blocking=True) for x in (self.mean, self.std))
        x = torch.empty(images.shape, device=device) if out is None else out
        one_by_one = device.type == "cpu"  # an image fits into the cache of a core
        for source, part in zip(images, x, strict=True) if one_by_one else [(images, x)]:
            part.copy_(source, non_blocking=True)
            if not images.is_floating_point():
                part.div_(255)
            part.sub_(mean).div_(std)
        for row, top, left, values in self.patches:
            height, width = values.shape[-2:]
            place = x[row, :, top : top + height, left : left + width]
            place.copy_(values.to(device, non_blocking=True))
        for row, (height, width) in enumerate(() if sizes is None else sizes.tolist()):
            x[row, :, height:], x[row, :, :, width:] = 0, 0
        return x


@dataclass
class Batch:
    """Images that take a step together, and what is known of them.

    targets: (B,) int64 labels, (B, K) soft labels, (B, Hi, Wi) label maps; a list of label maps where they differ
    in size, or of `Target`.
    sizes: (B, 2) int64, the true (height, width) of each image where the batch is padded; None: all of it.
    names: what to call each image in a message. indices: their positions in the data set.
    finish: the last steps of images that are uint8 still, in place of float: `to` applies them on the device.
    views: the same images, each prepared from the original in other ways, in order: images and sizes alone.
    """

    images: Tensor  # (B, C, Hi, Wi) float, normalized
    targets: Any = None
    sizes: Tensor | None = None
    names: Sequence[str] = field(default_factory=list)
    indices: Sequence[int] = field(default_factory=list)
    views: Sequence[Batch] = field(default_factory=list)
    finish: Finish | None = None

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str, memory_format: torch.memory_format | None = None) -> Self:
        """The batch with every tensor on `device`; copies overlap with work where memory is pinned."""
        moved = {f.name: _move(getattr(self, f.name), device) for f in fields(self)}
        if self.finish is not None:
            moved["images"], moved["finish"] = self.finish(moved["images"], self.sizes), None
        if memory_format is not None:
            moved["images"] = moved["images"].contiguous(memory_format=memory_format)
            moved["views"] = [view.to(device, memory_format) for view in self.views]
        return replace(self, **moved)

    def pin_memory(self) -> Self:
        """The batch in page-locked memory, so that the copy to a GPU can overlap."""
        views = [view.pin_memory() for view in self.views]
        return replace(self, images=self.images.pin_memory(), views=views)


AttentionKind = Literal[
    "self", "class", "gated", "content", "position", "window", "global", "summary", "channel"
]


@dataclass(frozen=True)
class TokenAttention:
    """The attention of one layer among all tokens, its weights computed for some queries at a time.

    What needs no more than sums over queries takes it in place of an `AttentionMap`, whose weights of a large image
    fill the memory.

    kind, layer, grid, prefix: as in `AttentionMap`; kinds "self" and "gated". heads: their number.
    rows: (start, stop) -> the weights of those queries for all keys (B, heads, stop - start, T + N).
    """

    kind: AttentionKind
    layer: str
    grid: tuple[int, int]
    prefix: int
    heads: int
    rows: Callable[[int, int], Tensor]


@dataclass(frozen=True)
class AttentionMap:
    """The attention weights of one layer for a batch of images, as computed: never scaled for display.

    kind: what attends to what, and with it the shape of `values` (T tokens in front, N = H * W patches in rows
        first, w window side, D channels of a head).
        "self": all tokens to all tokens (B, heads, T + N, T + N), rows for queries.
        "class": the class token to the patches (B, heads, H, W).
        "gated", "content", "position": gated positional self-attention and its two parts, patches to patches
        (B, heads, N, N); position alone does not depend on the image (1, heads, N, N).
        "window": tokens to the tokens of their window (B, windows, heads, w * w, w * w), windows row by row.
        "global": the global queries of an image to the tokens of each window, same shape.
        "summary": tokens to tiles of the map (B, heads, N, M), M = H * W tiles.
        "channel": channels to channels (B, heads, D, D), no places.
    layer: name of the module in the backbone, such as "blocks.11.attn".
    grid: (H, W) of the keys; (0, 0) for channels. query_grid: of the queries, where it is another.
    stride, centre: key (i, j) lies at pixel (stride * i + centre, stride * j + centre) of the model's input,
        counted from 0 in the middle of the first pixel.
    seen: the share of the weights that lies on patches of the image; the rest lies on tokens in front or on the
        padding of windows. The shape of `values` without its keys.
    normalised: what `values` sum to.
    prefix: T, tokens in front of the patches among queries and keys of kind "self".
    windows: (rows, columns) of windows, of kinds "window" and "global".
    gate: the share of position of each head (heads,), of kinds "gated", "content" and "position".
    temperature: the learned factor of each head (heads,), of kind "channel".
    """

    kind: AttentionKind
    layer: str
    values: Tensor
    seen: Tensor
    grid: tuple[int, int] = (0, 0)
    stride: int = 0
    centre: float = 0.0
    query_grid: tuple[int, int] | None = None
    prefix: int = 0
    windows: tuple[int, int] | None = None
    gate: Tensor | None = None
    temperature: Tensor | None = None

    @property
    def normalised(self) -> str:
        return "values of an image and head sum to `seen`" if self.kind == "class" else "rows sum to 1"

    def query(self, row: int, column: int) -> Tensor:
        """The weights of one query for all keys (B, heads, H, W), 0 outside of its window.

        row, column: of the query in its grid; of "global" queries: of a token, whose place in its window counts.

        Raises:
            ValueError: for kinds without such queries, and places outside of the grid.
        """
        grid = self.query_grid or self.grid
        if self.kind in ("class", "channel"):
            raise ValueError(f"Attention of kind {self.kind!r} has no queries with a place; use `values`.")
        if not (0 <= row < grid[0] and 0 <= column < grid[1]):
            raise ValueError(f"A query of {self.layer} is in a grid of {grid}; got {(row, column)}.")
        if self.windows is None:
            weights = self.values[:, :, self.prefix + row * grid[1] + column, self.prefix :]
            return weights.unflatten(2, self.grid)
        side = self._window_side()
        window = row // side * self.windows[1] + column // side
        import torch  # records alone need none of it

        kept = torch.zeros_like(self.values[..., 0, :])  # (B, windows, heads, w * w)
        kept[:, window] = self.values[:, window, :, row % side * side + column % side]
        return self._placed(kept)

    def mean_over_queries(self) -> Tensor:
        """The mean weight of each key over all queries that have a place (B, heads, H, W).

        Windows: over the queries of the key's own window, those on padding left out. The class token's row where
        it is the only query.

        Raises:
            ValueError: for channels, which have no place.
        """
        if self.kind == "channel":
            raise ValueError("Attention between channels has no places; use `values`.")
        if self.kind == "class":
            return self.values
        if self.windows is None:
            return self.values[:, :, self.prefix :, self.prefix :].mean(dim=2).unflatten(2, self.grid)
        if self.kind == "global":
            return self._placed(self.values.mean(dim=-2))
        side, (rows, columns) = self._window_side(), self.windows
        real = self.values.new_zeros(rows * side, columns * side)
        real[: self.grid[0], : self.grid[1]] = 1
        real = real.view(rows, side, columns, side).transpose(1, 2).reshape(-1, 1, side * side, 1)
        return self._placed((self.values * real).sum(dim=-2) / real.sum(dim=-2))

    def class_row(self) -> Tensor:
        """The weights of the first token for the patches (B, heads, H, W), of kinds "self" and "class".

        Raises:
            ValueError: where there is no class token.
        """
        if self.kind == "class":
            return self.values
        if not self.prefix:
            raise ValueError(f"No class token attends in {self.layer}.")
        return self.values[:, :, 0, self.prefix :].unflatten(2, self.grid)

    def _window_side(self) -> int:
        return math.isqrt(self.values.shape[-1])

    def _placed(self, keys: Tensor) -> Tensor:
        """Keys of windows (B, windows, heads, w * w) -> the map (B, heads, H, W), padding cut off."""
        assert self.windows is not None
        side = self._window_side()
        x = keys.unflatten(3, (side, side)).unflatten(1, self.windows)  # (B, rows, columns, heads, w, w)
        x = x.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
        return x[:, :, : self.grid[0], : self.grid[1]]


def _move(value: Any, device: torch.device | str) -> Any:
    from torch import Tensor

    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, Batch):
        return value.to(device)
    if isinstance(value, Target):
        return replace(value, **{f.name: _move(getattr(value, f.name), device) for f in fields(value)})
    if isinstance(value, list):
        return [_move(v, device) for v in value]
    return value
