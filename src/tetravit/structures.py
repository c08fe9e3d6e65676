"""Plain records shared by all layers. One file: the records of every signature are found in one place."""

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

GRAY_MEAN, GRAY_STD = 0.449, 0.226  # averages over the three channels
Kind = Literal["classify", "segment", "detect"]  # targets of an image: a class, a label map, objects
DataKind = Literal["classify", "segment", "detect", "unlabelled"]  # the same for a data set; or unlabelled


@dataclass(frozen=True)
class Preprocess:
    """The preprocessing of weights: from a picture to the input tensor.

    size: side of the square input in pixels, or (height, width). crop: centre crop as a share of the resized image,
    in (0, 1]: resize to cover size / crop, then crop. mode: `center` keeps the aspect ratio and crops; `squash`
    resizes to `size`; `fit` keeps the aspect ratio and the whole image, with a short side of at most `size` and a
    long side of at most `longest` pixels. mean, std: per channel, of values in [0, 1].
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
        """Height and width of the input; for mode `fit` the short side, twice."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    @property
    def channels(self) -> int:
        return len(self.mean)


def usual_colours(channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Default mean and standard deviation per channel: ImageNet's; for other than three channels their averages."""
    if channels == 3:
        return IMAGENET_MEAN, IMAGENET_STD
    return (GRAY_MEAN,) * channels, (GRAY_STD,) * channels


def for_channels(p: Preprocess, channels: int) -> Preprocess:
    """The preprocessing for a number of channels: unchanged, or with the default mean and standard deviation."""
    if p.channels == channels:
        return p
    mean, std = usual_colours(channels)
    return replace(p, mean=mean, std=std)


# Preprocessing of the published dense models.
ADE20K_INPUT = Preprocess(size=512, longest=2048, mode="fit", interpolation="bilinear")
COCO_INPUT = Preprocess(size=800, longest=1333, mode="fit", interpolation="bilinear")


@dataclass
class Target:
    """Targets of an image in a dense task. M objects; sizes in pixels of the image."""

    boxes: Tensor  # (M, 4) float, x1 y1 x2 y2
    labels: Tensor  # (M,) int64, counted from 0
    masks: Tensor | None = None  # (M, Hi, Wi) bool
    crowd: Tensor | None = None  # (M,) bool: a region of many objects, evaluated apart
    area: Tensor | None = None  # (M,) float, as annotated
    image_id: int = -1
    size: tuple[int, int] | None = None  # (height, width) of the original image


@dataclass
class Detections:
    """The objects of one image. Boxes in absolute pixels x1 y1 x2 y2; labels from 0."""

    boxes: Tensor  # (M, 4) float
    scores: Tensor  # (M,) float in [0, 1]
    labels: Tensor  # (M,) int64
    masks: Tensor | None = None  # (M, Hi, Wi) bool
    steps: Tensor | None = (
        None  # (S, M, 4): how the boxes came about, the last as in `boxes`; only if asked for
    )

    def to_supervision(self, class_names: Sequence[str] = ()) -> Any:
        """Convert to `supervision.Detections`, for annotation, counting and tracking (package supervision).

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
        """Rows of a COCO results file, for pycocotools, FiftyOne and CVAT.

        Args:
            image_id: of the image.
            category_ids: of each class; None: class index + 1.

        Returns:
            Per object image_id, category_id, bbox (x y w h in pixels), score; with masks also segmentation (RLE).
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
        """The content of a LabelMe file: editable rectangles.

        Args:
            image_path: the path of the image in the file.
            size: (height, width) of the image.
            class_names: one per class; empty: class indices.
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
    """One item of a data set, before collation."""

    image: Tensor  # (C, Hi, Wi): uint8 from the data set, float after the transforms
    target: Any  # a class index, a label map (Hi, Wi) of integers, a Target
    name: str  # for messages: a path, or "digits/train/17"


@dataclass
class Finish:
    """The remaining steps for uint8 images (B, C, Hi, Wi): the values of `normalize`, then of `erase`.

    Results equal those of the transforms, bitwise on a CPU; workers send a quarter of the bytes.

    mean, std: (C, 1, 1). patches: row, top, left and values (C, h, w) of each erased rectangle.
    """

    mean: Tensor
    std: Tensor
    patches: list[tuple[int, int, int, Tensor]] = field(default_factory=list)

    def __call__(self, images: Tensor, sizes: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """Normalized float images on the device of `images`; pixels outside `sizes` (B, 2) are 0.

        out: (B, C, Hi, Wi) float32, filled and returned; None: a new tensor.
        """
        import torch  # imported late: records need no torch

        device = images.device
        mean, std = (x.to(device, non_blocking=True) for x in (self.mean, self.std))
        x = torch.empty(images.shape, device=device) if out is None else out
        one_by_one = device.type == "cpu"  # one image fits into the cache of a core
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
    """A batch of images with their targets.

    targets: (B,) int64 labels, (B, K) soft labels, (B, Hi, Wi) label maps; a list of label maps of different sizes,
    or of `Target`.
    sizes: (B, 2) int64, (height, width) of each image in a padded batch; None: not padded.
    names: of the images, for messages. indices: their positions in the data set.
    finish: the remaining steps of images that are still uint8; `to` applies them on the device.
    views: the same images, each preprocessed from the original in other ways, in order: images and sizes only.
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
        """The batch with every tensor on `device`; copies from pinned memory are asynchronous."""
        moved = {f.name: _move(getattr(self, f.name), device) for f in fields(self)}
        if self.finish is not None:
            moved["images"], moved["finish"] = self.finish(moved["images"], self.sizes), None
        if memory_format is not None:
            moved["images"] = moved["images"].contiguous(memory_format=memory_format)
            moved["views"] = [view.to(device, memory_format) for view in self.views]
        return replace(self, **moved)

    def pin_memory(self) -> Self:
        """The batch in page-locked memory, for asynchronous copies to a GPU."""
        views = [view.pin_memory() for view in self.views]
        return replace(self, images=self.images.pin_memory(), views=views)


AttentionKind = Literal[
    "self", "class", "gated", "content", "position", "window", "global", "summary", "channel"
]


@dataclass(frozen=True)
class TokenAttention:
    """Global self-attention of one layer, with weights computed for a few queries at a time.

    For methods that need only sums over queries: an `AttentionMap` of a large image would not fit in memory.

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
    """The attention weights of one layer for a batch of images, not rescaled for display.

    kind: type of attention, which determines the shape of `values` (T prefix tokens, N = H * W patches in row-major
        order, w window side, D channels per head).
        "self": all tokens to all tokens (B, heads, T + N, T + N), rows for queries.
        "class": the class token to the patches (B, heads, H, W).
        "gated", "content", "position": gated positional self-attention and its two parts, patches to patches
        (B, heads, N, N); position alone does not depend on the image (1, heads, N, N).
        "window": tokens to the tokens of their window (B, windows, heads, w * w, w * w), windows row by row.
        "global": global queries of an image to the tokens of each window, same shape.
        "summary": tokens to sub-sampled tokens (tiles of the map) (B, heads, N, M), M = H * W tiles.
        "channel": channels to channels (B, heads, D, D), not spatial.
    layer: name of the module in the backbone, such as "blocks.11.attn".
    grid: (H, W) of the keys; (0, 0) for channels. query_grid: of the queries, if different.
    stride, centre: key (i, j) lies at pixel (stride * i + centre, stride * j + centre) of the model's input,
        counted from 0 in the middle of the first pixel.
    seen: sum of the weights over patches of the image; the rest is on prefix tokens or the padding of windows. Shape
        of `values` without its keys.
    normalised: which sums of `values` are 1.
    prefix: T, prefix tokens among queries and keys of kind "self".
    windows: (rows, columns) of windows, of kinds "window" and "global".
    gate: gate of each head (heads,), for kinds "gated", "content" and "position".
    temperature: learned temperature of each head (heads,), for kind "channel".
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
        """The weights of one query for all keys (B, heads, H, W), 0 outside its window.

        row, column: of the query in its grid; for "global" queries: a token, by its position in its window.

        Raises:
            ValueError: for kinds without spatial queries, and positions outside the grid.
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
        import torch  # imported late: records need no torch

        kept = torch.zeros_like(self.values[..., 0, :])  # (B, windows, heads, w * w)
        kept[:, window] = self.values[:, window, :, row % side * side + column % side]
        return self._placed(kept)

    def mean_over_queries(self) -> Tensor:
        """The mean weight of each key over all spatial queries (B, heads, H, W).

        Windows: over the queries of the key's window without padding. The class token's row if it is the only query.

        Raises:
            ValueError: for channel attention, which is not spatial.
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
        """The weights of the first token over the patches (B, heads, H, W), for kinds "self" and "class".

        Raises:
            ValueError: without a class token.
        """
        if self.kind == "class":
            return self.values
        if not self.prefix:
            raise ValueError(f"No class token attends in {self.layer}.")
        return self.values[:, :, 0, self.prefix :].unflatten(2, self.grid)

    def _window_side(self) -> int:
        return math.isqrt(self.values.shape[-1])

    def _placed(self, keys: Tensor) -> Tensor:
        """Keys of windows (B, windows, heads, w * w) -> the map (B, heads, H, W), without padding."""
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
