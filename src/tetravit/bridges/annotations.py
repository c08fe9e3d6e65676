"""Write predictions as files for annotation tools: CVAT, FiftyOne, and other readers of COCO data sets.

    predictions = tetravit.predict(detector, "images")
    write_coco(predictions, "predicted.json", detector.class_names)

In CVAT: a task with these images, then Actions, Upload annotations, COCO 1.0. In FiftyOne: `Dataset.from_dir` with
`dataset_type=fiftyone.types.COCODetectionDataset`, `data_path="images"` and `labels_path="predicted.json"`. Neither
library is needed to write the files.
"""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tetravit.data import coco
from tetravit.files import replace_file
from tetravit.predictors.parts.classes import Classes
from tetravit.predictors.parts.objects import Objects
from tetravit.predictors.parts.predictions import Prediction
from tetravit.rle import decode_rle


def write_coco(
    predictions: Iterable[Any],
    file: str | Path,
    class_names: Sequence[str],
    *,
    root: str | Path | None = None,
) -> dict[str, Any]:
    """Write detections as a COCO data set: images, categories, annotations; returns its content.

    Masks are run lengths; each annotation has a "score". Unreadable images are skipped.

    Args:
        predictions: of files, by a detector, from `tetravit.predict`.
        file: the JSON file.
        class_names: one per class.
        root: base folder of the image names; None: the deepest common folder.

    Raises:
        ValueError: for predictions of another kind, or of images that are not files.
    """
    kept = _of_files(predictions, Objects, "a detector")
    categories = dict(zip(coco.category_ids(class_names), class_names, strict=True)) if not kept else {}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (row, name) in enumerate(zip(kept, _names([p.image for p in kept], root), strict=True), 1):
        images.append({"id": number, "file_name": name, "height": row.size[0], "width": row.size[1]})
        categories |= dict(zip(row.categories, class_names, strict=True))
        for detected, result in zip(row.objects, row.results(), strict=True):
            width, height = result["bbox"][2:]
            area = (
                float(decode_rle(detected.mask)[1::2].sum()) if detected.mask is not None else width * height
            )
            annotations.append(
                {"id": len(annotations) + 1, "image_id": number, "iscrowd": 0, "area": area, **result}
            )
    table = {
        "images": images,
        "categories": [{"id": i, "name": name} for i, name in sorted(categories.items())],
        "annotations": annotations,
    }
    replace_file(Path(file), json.dumps(table).encode())
    return table


def write_classes(
    predictions: Iterable[Any],
    file: str | Path,
    class_names: Sequence[str],
    *,
    root: str | Path | None = None,
) -> dict[str, Any]:
    """Write the top-1 class of each image as FiftyOne's labels.json; returns its content.

    For `fiftyone.types.FiftyOneImageClassificationDataset`; class and confidence by image path without extension.

    Args:
        predictions: of files, by a classifier, from `tetravit.predict`.
        file: the JSON file.
        class_names: one per class.
        root: base folder of the image names; None: the deepest common folder.

    Raises:
        ValueError: for predictions of another kind, or of images that are not files.
    """
    kept = _of_files(predictions, Classes, "a classifier")
    names = [os.path.splitext(name)[0] for name in _names([p.image for p in kept], root)]
    labels = {
        name: {"label": row.guesses[0].name, "confidence": row.guesses[0].score}
        for name, row in zip(names, kept, strict=True)
        if row.guesses
    }
    table = {"classes": list(class_names), "labels": labels}
    replace_file(Path(file), json.dumps(table).encode())
    return table


def _of_files(predictions: Iterable[Any], kind: type[Prediction], noun: str) -> list[Any]:
    """The predictions without unreadable images.

    Raises:
        ValueError: for predictions of another kind, or of images that are not files.
    """
    given: Any = predictions
    rows: list[Any] = [given] if hasattr(given, "image") else list(given)
    for row in rows:
        if not isinstance(row, kind):
            raise ValueError(f"This file holds predictions of {noun}; got {type(row).__name__}.")
        if not isinstance(row.image, Path):
            raise ValueError(f"Annotation tools find images by their files; {row.image} is none.")
    return [row for row in rows if row.error is None]


def _names(files: Sequence[Path], root: str | Path | None) -> list[str]:
    """Paths relative to `root`, with forward slashes."""
    if not files:
        return []
    folder = Path(root) if root is not None else Path(os.path.commonpath([file.parent for file in files]))
    return [Path(os.path.relpath(file, folder)).as_posix() for file in files]
