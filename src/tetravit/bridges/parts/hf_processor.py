"""The image processor of Hugging Face transformers for these models.

Shapes: B images, C channels, (Hi, Wi) pixels of a picture, (h, w) of a prepared one, M objects.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

from tetravit.data.preprocess import pixels, preprocess
from tetravit.models.base import Model
from tetravit.models.create import tuples
from tetravit.registry import suggestion
from tetravit.structures import Preprocess

STEPS = ("do_resize", "do_rescale", "do_normalize", "do_center_crop", "do_convert_rgb", "do_pad")
PADDING = 32  # padded sides are multiples of this many pixels


class TetravitImageProcessor(BaseImageProcessor):
    """Preprocess pictures into model inputs, and postprocess outputs into predictions.

    Args:
        preprocess: fields of `Preprocess`.
    """

    model_input_names = ["pixel_values"]  # noqa: RUF012

    def __init__(self, preprocess: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.preprocess_options = dict(preprocess or {})

    @classmethod
    def of(cls, model: Model) -> "TetravitImageProcessor":
        """The processor for a model's preprocessing."""
        return cls(preprocess=asdict(model.input))

    def to_dict(self) -> dict[str, Any]:
        table = super().to_dict()
        table["preprocess"] = table.pop("preprocess_options", self.preprocess_options)
        return table

    def __call__(
        self,
        images: Any,
        segmentation_maps: Any = None,
        annotations: Any = None,
        return_tensors: str | None = None,
        **changes: Any,
    ) -> BatchFeature:
        """Preprocess pictures -> pixel_values (B, C, Hi, Wi); for several sizes also pixel_mask, 0 for padding.

        Args:
            images: one or several, in the formats of `model.preprocess`.
            segmentation_maps: label maps (Hi, Wi) of the pictures; returned as labels (B, h, w), padded with 255.
                Requires preprocessing without a crop.
            annotations: per picture {"annotations": [{"bbox": [x, y, w, h], "category_id": k}, ...]}; returned as
                labels, a list of "class_labels" (M,) and "boxes" (M, 4). Requires preprocessing without a crop.
            return_tensors: as in transformers.
            changes: size, image_mean and image_std as in transformers, or fields of `Preprocess`.

        Raises:
            ValueError: for an unknown argument, or targets of cropped pictures.
        """
        options = _changed(Preprocess(**tuples(self.preprocess_options)), changes)
        pictures = _several(images)
        tensors = [preprocess(image, options) for image in pictures]
        sizes = [(int(t.shape[1]), int(t.shape[2])) for t in tensors]
        data: dict[str, Any] = (
            {"pixel_values": torch.stack(tensors)} if len(set(sizes)) == 1 else _padded(tensors)
        )
        if (segmentation_maps is not None or annotations is not None) and options.mode == "center":
            raise ValueError(
                "Targets do not follow a centre crop: pass mode='squash' or mode='fit' beside segmentation_maps or"
                " annotations."
            )
        if segmentation_maps is not None:
            data["labels"] = _label_maps(_several(segmentation_maps), sizes, data["pixel_values"].shape[2:])
        if annotations is not None:
            rows = [annotations] if isinstance(annotations, Mapping) else annotations
            whole = [_size_of(picture) for picture in pictures]
            data["labels"] = [_objects(row, size) for row, size in zip(rows, whole, strict=True)]
        return BatchFeature(data, tensor_type=None if annotations is not None else return_tensors)

    preprocess = __call__

    def post_process_object_detection(
        self, outputs: Mapping[str, Any], threshold: float = 0.5, target_sizes: Any = None
    ) -> list[dict[str, Tensor]]:
        """Per image scores (M,), labels (M,), boxes (M, 4), x1 y1 x2 y2 in pixels of `target_sizes` (B, 2)."""
        rows = []
        for i, boxes in enumerate(outputs["pred_boxes"]):
            keep = outputs["valid"][i].bool() & (outputs["scores"][i] > threshold)
            boxes = boxes[keep]
            if target_sizes is not None:
                height, width = (float(side) for side in target_sizes[i])
                boxes = boxes * boxes.new_tensor((width, height, width, height))
            rows.append(
                {"scores": outputs["scores"][i][keep], "labels": outputs["labels"][i][keep], "boxes": boxes}
            )
        return rows

    def post_process_semantic_segmentation(self, outputs: Any, target_sizes: Any = None) -> list[Tensor]:
        """Per image the argmax class of every pixel, (height, width) of `target_sizes` (B, 2)."""
        logits = outputs["logits"]
        if target_sizes is None:
            return list(logits.argmax(dim=1))
        resized = (
            F.interpolate(
                logits[i : i + 1], [int(side) for side in size], mode="bilinear", align_corners=False
            )
            for i, size in enumerate(target_sizes)
        )
        return [scores.argmax(dim=1)[0] for scores in resized]


def _several(images: Any) -> list[Any]:
    """One picture, a list of them or a batch in one array -> a list."""
    if isinstance(images, list | tuple):
        return list(images)
    return list(images) if getattr(images, "ndim", 0) == 4 else [images]


def _changed(options: Preprocess, changes: Mapping[str, Any]) -> Preprocess:
    """The preprocessing with changes, under transformers' names or ours.

    Raises:
        ValueError: for an unknown argument, or a step that cannot be disabled.
    """
    known = {field.name for field in fields(Preprocess)}
    given: dict[str, Any] = {}
    for name, value in changes.items():
        name = {"image_mean": "mean", "image_std": "std"}.get(name, name)
        if value is None or (name in STEPS and value):
            continue
        if name in STEPS:
            raise ValueError(
                f"TetravitImageProcessor always resizes, rescales and normalizes; got {name}=False. Prepared tensors"
                " go to the model as they are."
            )
        if name not in known:
            raise ValueError(f"TetravitImageProcessor has no argument {name!r}.{suggestion(name, known)}")
        if name == "size" and isinstance(value, Mapping):
            given |= _sides(value)
        else:
            given[name] = tuple(value) if isinstance(value, list) else value
    return replace(options, **given)


def _sides(size: Mapping[str, int]) -> dict[str, Any]:
    """Convert transformers' sizes to ours.

    Raises:
        ValueError: for other keys.
    """
    if set(size) == {"height", "width"}:
        return {"size": (size["height"], size["width"])}
    if set(size) in ({"shortest_edge"}, {"shortest_edge", "longest_edge"}):
        return {"size": size["shortest_edge"], "longest": size.get("longest_edge")}
    raise ValueError(
        'size is pixels, {"height": H, "width": W} or {"shortest_edge": S, "longest_edge": L}; got'
        f" {', '.join(size)}."
    )


def _size_of(picture: Any) -> tuple[int, int]:
    """Height and width of a picture."""
    if hasattr(picture, "size") and not hasattr(picture, "shape"):
        return picture.size[1], picture.size[0]
    height, width = pixels(picture).shape[1:]
    return height, width


def _label_maps(maps: Sequence[Any], sizes: Sequence[tuple[int, int]], canvas: Sequence[int]) -> Tensor:
    """Label maps (Hi, Wi) resized to the preprocessed pictures, padded with 255 to (B, *canvas)."""
    labels = torch.full((len(maps), *canvas), 255, dtype=torch.int64)
    for i, (given, (height, width)) in enumerate(zip(maps, sizes, strict=True)):
        one = torch.as_tensor(np.array(given))[None, None].float()
        labels[i, :height, :width] = F.interpolate(one, (height, width), mode="nearest-exact")[0, 0].long()
    return labels


def _objects(row: Mapping[str, Any], size: tuple[int, int]) -> dict[str, Tensor]:
    """COCO annotations of a picture of (height, width) pixels -> class_labels (M,), normalized boxes (M, 4)."""
    kept = [entry for entry in row["annotations"] if not entry.get("iscrowd", 0)]
    boxes = torch.tensor([entry["bbox"] for entry in kept], dtype=torch.float32).reshape(-1, 4)
    corner, extent = boxes.split(2, dim=1)
    share = torch.cat((corner + extent / 2, extent), dim=1) / torch.tensor(size[::-1]).repeat(2)
    labels = torch.tensor([entry["category_id"] for entry in kept], dtype=torch.int64)
    return {"class_labels": labels, "boxes": share}


def _padded(tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    """Pad images of several sizes to one batch, each in the upper left corner, with a mask."""
    height, width = (max(t.shape[side] for t in tensors) for side in (1, 2))
    height, width = height + -height % PADDING, width + -width % PADDING
    images = tensors[0].new_zeros(len(tensors), tensors[0].shape[0], height, width)
    mask = torch.zeros(len(tensors), height, width, dtype=torch.int64)
    for i, tensor in enumerate(tensors):
        images[i, :, : tensor.shape[1], : tensor.shape[2]] = tensor
        mask[i, : tensor.shape[1], : tensor.shape[2]] = 1
    return {"pixel_values": images, "pixel_mask": mask}
