"""Segmentation maps of images."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from tetravit.data.palettes import Colour, palette
from tetravit.data.preprocess import preprocess, scaled
from tetravit.draw import free_name
from tetravit.draw.label_maps import label_png, overlay, shares
from tetravit.models.inference import Inference, segment
from tetravit.models.segmenter import Segmenter
from tetravit.predictors.base import Writer
from tetravit.predictors.parts.predictions import (
    Prediction,
    Prepared,
    Source,
    check_count,
    in_chunks,
    pixels_of,
)

LISTED = 5  # classes in a row of a table


@dataclass(frozen=True)
class Segments(Prediction):
    """The label map of an image. labels: uint8 (Hi, Wi). class_names, colours: one per class."""

    labels: Tensor | None = None
    class_names: tuple[str, ...] = ()
    colours: tuple[Colour, ...] = field(default=(), repr=False)

    def cells(self) -> list[str]:
        return [f"{self.class_names[i]}  {100 * share:.1f} %" for i, share in self._shares()[:LISTED]]

    def facts(self) -> dict[str, Any]:
        assert self.labels is not None
        classes = [
            {"index": i, "class": self.class_names[i], "share": round(share, 6)}
            for i, share in self._shares()
        ]
        return {"height": self.labels.shape[0], "width": self.labels.shape[1], "classes": classes}

    def picture(self, pixels: Tensor) -> Image:
        assert self.labels is not None
        return overlay(pixels, self.labels, self.class_names, self.colours)

    def map_picture(self) -> Image:
        """The label map as a palette picture, whose indices are the classes."""
        assert self.labels is not None
        return label_png(self.labels, self.colours)

    def _shares(self) -> list[tuple[int, float]]:
        assert self.labels is not None
        return shares(self.labels, len(self.class_names))


def segments(
    model: Segmenter,
    images: Iterable[Source],
    *,
    batch_size: int = 1,
    device: torch.device | str = "cpu",
    window: int | None = None,
    stride: int | None = None,
    scales: tuple[float, ...] = (1.0,),
    flip: bool = False,
) -> Iterator[Segments]:
    """Segment images; each label map has the size of its image.

    Args:
        model: from `tetravit.load`, with preprocessing and class names.
        images: files and frames; unreadable files get a prediction with the error.
        batch_size: windows per call of the model; without windows, one image per call.
        device: of the computation.
        window, stride, scales, flip: see `models.inference.Inference`.

    Raises:
        ValueError: for a number out of range.
    """
    check_count("batch_size", batch_size)
    how = Inference(window, stride, batch_size, scales, flip)
    return _segments(model.to(device).eval(), images, torch.device(device), how)


@torch.inference_mode()
def _segments(
    model: Segmenter, images: Iterable[Source], device: torch.device, how: Inference
) -> Iterator[Segments]:
    names = model.class_names or tuple(str(i) for i in range(model.num_classes))
    colours = palette(names)

    def read(image: Source) -> tuple[list[Tensor], tuple[int, int]]:
        if isinstance(image, Prepared) and how.scales == (1.0,):
            return [image.tensor], image.size
        pixels = pixels_of(image)
        looks = [preprocess(pixels, scaled(model.input, scale)) for scale in how.scales]
        return looks, (pixels.shape[1], pixels.shape[2])

    for files, batch in in_chunks(images, 2, read):
        for file, entry in zip(files, batch, strict=True):
            if isinstance(entry, tuple):
                looks, size = entry
                (labels,) = segment(model, [x[None].to(device) for x in looks], [size], how)
                yield Segments(file, None, labels.to("cpu", torch.uint8), names, colours)
            else:
                yield Segments(file, error=entry.cause)


class _Maps(Writer):
    """Label maps as PNG files in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.taken = folder, set[Path]()
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, prediction: Segments) -> None:
        prediction.map_picture().save(free_name(self.folder, Path(str(prediction.image)), self.taken))

    def close(self) -> str:
        return f"Wrote {len(self.taken)} label maps into {self.folder}."


def maps(model: Segmenter, sources: Sequence[Source], save_maps: Path) -> Writer:
    """A writer of label maps into the folder `save_maps`."""
    return _Maps(save_maps)
