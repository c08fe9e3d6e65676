"""Detected objects of images: boxes, classes, and masks if the model predicts them."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from PIL.Image import Image
from torch import Tensor
from torch.nn import functional as F

from tetravit.data import coco
from tetravit.data.masks import encode_pasted_masks, inside_columns
from tetravit.data.palettes import Colour, palette
from tetravit.data.preprocess import preprocess
from tetravit.draw.objects import outlined
from tetravit.models import Detector
from tetravit.models.detector import Masks
from tetravit.models.tiles import find_in_tiles
from tetravit.predictors.parts.predictions import (
    Prediction,
    Prepared,
    Source,
    check_count,
    in_chunks,
    pixels_of,
)
from tetravit.rle import decode_rle
from tetravit.structures import Detections

LISTED = 5  # objects in a row of a table
MUCH = 4  # downscaling factor from which small objects may be lost

Side = int | Literal["own"]


@dataclass(frozen=True)
class Object:
    """One object. index: of the class. box: x1 y1 x2 y2 in pixels. mask: COCO's run lengths."""

    index: int
    name: str
    score: float
    box: tuple[float, float, float, float]
    mask: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Objects(Prediction):
    """The objects of an image, highest score first. size: its height and width.

    seen: height and width of the model's input; None: tiled. categories: COCO category id of each class. colours: one
    per class.
    """

    objects: tuple[Object, ...] = ()
    size: tuple[int, int] = (0, 0)
    seen: tuple[int, int] | None = None
    categories: tuple[int, ...] = field(default=(), repr=False)
    colours: tuple[Colour, ...] = field(default=(), repr=False)

    def cells(self) -> list[str]:
        if not self.objects:
            return ["nothing"]
        lines = [f"{o.name}  {100 * o.score:.1f} %" for o in self.objects[:LISTED]]
        more = len(self.objects) - len(lines)
        return [*lines, f"and {more} more"] if more else lines

    def facts(self) -> dict[str, Any]:
        """Objects in COCO's result format, with class names."""
        rows = [{"class": o.name, **row} for o, row in zip(self.objects, self.results(), strict=True)]
        return {"height": self.size[0], "width": self.size[1], "objects": rows}

    def results(self) -> list[dict[str, Any]]:
        """COCO's result format without image_id: category_id, bbox (x y width height), score, segmentation."""
        rows = []
        for o in self.objects:
            x1, y1, x2, y2 = o.box
            box = [round(value, 2) for value in (x1, y1, x2 - x1, y2 - y1)]
            row: dict[str, Any] = {
                "category_id": self.categories[o.index],
                "bbox": box,
                "score": round(o.score, 6),
            }
            if o.mask is not None:
                row["segmentation"] = {"size": list(self.size), "counts": o.mask.decode("ascii")}
            rows.append(row)
        return rows

    def hint(self) -> str:
        if self.seen is None or min(self.size) <= MUCH * min(self.seen):
            return ""
        (height, width), (high, wide) = self.size, self.seen
        return (
            f"its {width} x {height} pixels are resized to {wide} x {high};"
            " --side own keeps them all, --window PX predicts on tiles too"
        )

    def picture(self, pixels: Tensor) -> Image:
        drawn = self.objects[::-1]  # the highest score on top
        return outlined(
            pixels,
            [o.box for o in drawn],
            [f"{o.name} {100 * o.score:.0f} %" for o in drawn],
            [self.colours[o.index] for o in drawn],
            (None if o.mask is None else inside_columns(decode_rle(o.mask), self.size[0]) for o in drawn),
        )


def objects(
    model: Detector,
    images: Iterable[Source],
    *,
    threshold: float = 0.3,
    batch_size: int = 1,
    device: torch.device | str = "cpu",
    side: Side | None = None,
    window: int | None = None,
    stride: int | None = None,
    categories: Sequence[int] | None = None,
    class_agnostic: bool | None = None,
) -> Iterator[Objects]:
    """Detect objects in images.

    Args:
        model: from `tetravit.load`, with preprocessing and class names.
        images: files and frames, of any sizes; unreadable files get a prediction with the error.
        threshold: minimum score.
        batch_size: images, or tiles of one, per call of the model. Smaller ones are padded to the largest, which
            slightly changes the results of models with global attention.
        device: of the computation.
        side: short side in pixels to which images or tiles are resized, without limit on the long side; "own": not
            resized; None: preprocessing of the weights.
        window, stride: in addition to the whole image, predict on tiles of this side with this stride (None: four
            fifths of the window), and merge the objects. The result may exceed the model's limit per image.
        categories: category id of each class in COCO's result format; None: COCO's for its classes, else 1, 2, 3, ...
        class_agnostic: whether NMS also suppresses overlapping objects of other classes; None: the head's default.

    Raises:
        ValueError: for a number out of range.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is a score from 0 to 1; got {threshold}.")
    check_count("batch_size", batch_size)
    for name, value in (("side", side), ("window", window), ("stride", stride)):
        if isinstance(value, str) and value != "own":
            raise ValueError(f"{name} is pixels, or 'own'; got {value!r}.")
        if isinstance(value, int):
            check_count(name, value)
    if stride is not None and (window is None or stride > window):
        raise ValueError(
            f"stride goes with a window, and is at most its side; got stride={stride}, window={window}."
        )
    model = model.to(device).eval()
    predictor = _Predictor(model, threshold, torch.device(device), categories, side, class_agnostic)
    return _objects(predictor, images, batch_size, window, stride or max(1, (window or 1) * 4 // 5))


@torch.inference_mode()
def _objects(
    predictor: "_Predictor",
    images: Iterable[Source],
    batch_size: int,
    window: int | None,
    stride: int,
) -> Iterator[Objects]:
    def read(image: Source) -> tuple[Tensor, tuple[int, int]]:
        if isinstance(image, Prepared) and not window and predictor.side is None:
            return image.tensor, image.size
        pixels = pixels_of(image)
        return (pixels if window else predictor.prepared(pixels)), _size(pixels)

    for files, batch in in_chunks(images, 1 if window else batch_size, read):
        whole = [entry for entry in batch if isinstance(entry, tuple)]
        if window:
            parts = [
                find_in_tiles(
                    predictor.find,
                    pixels,
                    window,
                    stride,
                    batch_size,
                    whole=predictor.find_trained,
                    class_agnostic=bool(predictor.class_agnostic),
                )
                for pixels, _ in whole
            ]
        else:
            parts = predictor.batch([x for x, _ in whole], [size for _, size in whole]) if whole else []
        predicted = []
        for part, (x, size) in zip(parts, whole, strict=True):
            predicted.append(predictor.to_objects(part, size, None if window else _size(x)))
        remaining = iter(predicted)
        for file, entry in zip(files, batch, strict=True):
            yield (
                replace(next(remaining), image=file)
                if isinstance(entry, tuple)
                else Objects(file, entry.cause)
            )


class _Predictor:
    """A model with its pre- and postprocessing."""

    def __init__(
        self,
        model: Detector,
        threshold: float,
        device: torch.device,
        categories: Sequence[int] | None,
        side: Side | None,
        class_agnostic: bool | None = None,
    ) -> None:
        self.model, self.threshold, self.device, self.side = model, threshold, device, side
        self.class_agnostic = class_agnostic
        self.names = model.class_names or tuple(str(i) for i in range(model.num_classes))
        self.categories = coco.category_ids(self.names) if categories is None else tuple(categories)
        if len(self.categories) != len(self.names):
            raise ValueError(
                f"categories holds a number for each of the {len(self.names)} classes; got {len(self.categories)}."
            )
        self.colours = palette(self.names)
        self.masks: Masks = "probabilities" if model.head.has_masks else "none"

    def prepared(self, pixels: Tensor) -> Tensor:
        """Resize a picture uint8 (3, Hi, Wi) -> (3, h, w), as requested."""
        if self.side is None:
            return self.model.preprocess(pixels)
        side = min(pixels.shape[1:]) if self.side == "own" else self.side
        return preprocess(pixels, replace(self.model.input, size=side, longest=None))

    def find(self, pictures: list[Tensor]) -> list[Detections]:
        """Objects of pictures uint8 (3, Hi, Wi)."""
        return self.batch([self.prepared(pixels) for pixels in pictures], [_size(x) for x in pictures])

    def find_trained(self, pictures: list[Tensor]) -> list[Detections]:
        """The same with the preprocessing of the weights."""
        return self.batch([self.model.preprocess(x) for x in pictures], [_size(x) for x in pictures])

    def batch(self, images: list[Tensor], sizes: list[tuple[int, int]]) -> list[Detections]:
        """Objects of preprocessed images (3, h, w), in pixels of pictures of `sizes`."""
        true = [_size(x) for x in images]
        height, width = (max(s[i] for s in true) for i in (0, 1))
        filled = torch.stack([F.pad(x, (0, width - x.shape[2], 0, height - x.shape[1])) for x in images])
        return self.model.detect(
            filled.to(self.device),
            true,
            output_sizes=sizes,
            masks=self.masks,
            threshold=self.threshold,
            class_agnostic=self.class_agnostic,
        )

    def to_objects(
        self, detections: Detections, size: tuple[int, int], seen: tuple[int, int] | None
    ) -> Objects:
        masks: list[bytes | None] = [None] * len(detections.boxes)
        if detections.masks is not None:
            masks = list(encode_pasted_masks(detections.masks, detections.boxes, size))
        rows = zip(
            detections.labels.tolist(),
            detections.scores.tolist(),
            detections.boxes.tolist(),
            masks,
            strict=True,
        )
        objects = tuple(Object(k, self.names[k], score, tuple(box), mask) for k, score, box, mask in rows)
        return Objects(Path(), None, objects, size, seen, self.categories, self.colours)


def _size(picture: Tensor) -> tuple[int, int]:
    return picture.shape[1], picture.shape[2]
