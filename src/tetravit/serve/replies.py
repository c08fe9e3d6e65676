"""Predictions as JSON and pictures."""

import base64
import io
import json
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from tetravit.data.masks import counts_mask
from tetravit.draw.base import LARGEST
from tetravit.draw.heat import scale_of
from tetravit.explainers import Explanation
from tetravit.explainers.parts.pictures import over, rgb
from tetravit.predictors.parts.objects import Objects
from tetravit.predictors.parts.predictions import Prediction
from tetravit.predictors.parts.segments import Segments
from tetravit.rle import decode_rle, encode_masks
from tetravit.serve.limits import Refused

MASKS = ("rle", "png", "none")


def described(prediction: Prediction, size: tuple[int, int], masks: str) -> dict[str, Any]:
    """A prediction as plain data, as in `tetravit predict --json`, with masks.

    Args:
        size: height and width of the image.
        masks: "rle": COCO run lengths per object or class; "png": base64 pictures, one per object, or a label map
            with class indices; "none": omitted.
    """
    facts = {"height": size[0], "width": size[1], **prediction.facts()}
    if isinstance(prediction, Segments):
        assert prediction.labels is not None
        if masks == "png":
            facts["label_map_png"] = _base64(png(prediction.map_picture()))
        elif masks == "rle":
            for row in facts["classes"]:
                (runs,) = encode_masks((prediction.labels == row["index"])[None])
                row["segmentation"] = {"size": list(size), "counts": runs.decode("ascii")}
    if isinstance(prediction, Objects) and masks != "rle":
        for row, detection in zip(facts["objects"], prediction.objects, strict=True):
            row.pop("segmentation", None)
            if masks == "png" and detection.mask is not None:
                row["mask_png"] = _base64(png(_mask(detection.mask, size)))
    return facts


def png(picture: Image.Image) -> bytes:
    """A picture encoded as a file."""
    buffer = io.BytesIO()
    picture.save(buffer, "png")
    return buffer.getvalue()


def drawn(prediction: Prediction, pixels: Tensor) -> bytes:
    """The image uint8 (3, Hi, Wi) with the prediction drawn on it, as PNG."""
    return png(prediction.picture(pixels))


def explained(explanation: Explanation, whole: bool) -> bytes:
    """An explanation as PNG.

    whole: all maps and heads with their scales, as drawn by `tetravit explain`; else the first map, averaged over
    heads, over the picture.
    """
    one = explanation.maps[0].mean()
    if whole or not one.has_places or explanation.view is None or explanation.pixels is None:
        return png(explanation.draw())
    picture = Image.fromarray(rgb(explanation.pixels))
    picture.thumbnail((LARGEST, LARGEST))
    scale = scale_of(one.values.numpy(), signed=one.signed)
    return png(over(np.asarray(picture), explanation.view, one, scale))


def text_of(facts: Any) -> bytes:
    """Plain data as JSON.

    Raises:
        Refused: 422 for numbers that JSON cannot represent.
    """
    try:
        return json.dumps(facts, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except ValueError:
        raise Refused(422, "The outputs of the model are not finite numbers.") from None


def _mask(runs: bytes, size: tuple[int, int]) -> Image.Image:
    mask = counts_mask(decode_rle(runs), *size)
    return Image.fromarray(mask.astype(np.uint8) * 255).convert("1")


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
