"""Write drawings of shapes as files in the layouts of real data sets: the same images in three layouts.

DIR/folders/{train,val}/CLASS/000000.jpg classification: class of the largest shape
DIR/coco/{train2017,val2017}/000000000139.jpg detection, with annotations/instances_*.json
DIR/ade20k/{images,annotations}/{training,validation}/*.jpg|png segmentation; 0: ignored, classes from 1
"""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tetravit.data.shapes import CLASSES, IGNORE, SEGMENTS, Drawing, draw

FOLDERS = ("folders", "coco", "ade20k")
CATEGORIES = (1, 2, 3, 5, 8, 9, 13, 21)  # ids of `CLASSES` in the COCO layout: with gaps, as in COCO
FIRST_ID, ID_STEP = 139, 146  # image ids in the COCO layout, also with gaps

Point = tuple[int, int]  # x, y of a corner of a pixel


def write_shapes(folder: Path, *, train: int, val: int, size: int = 128, seed: int = 0) -> Iterator[str]:
    """Write a set of drawings in all three layouts; yields the name of each finished drawing.

    Args:
        folder: output folder; created if missing.
        train, val: number of drawings per split.
        size: side in pixels.
        seed: of the drawings.

    Raises:
        ValueError: if such a set already exists, or a number is out of range.
        OSError: if a file cannot be written.
    """
    taken = [name for name in FOLDERS if (folder / name).exists()]
    if taken:
        raise ValueError(f"{str(folder / taken[0])!r} is there already; take another folder, or remove it.")
    if train < 1 or val < 1:
        raise ValueError(f"A set has 1 drawing or more of each part; got train={train}, val={val}.")
    draw(0, size=size)  # refuses a wrong size before anything is written
    return _written(folder, {"train": train, "val": val}, size, seed)


def _written(folder: Path, counts: dict[str, int], size: int, seed: int) -> Iterator[str]:
    pixels = np.zeros(len(SEGMENTS), np.int64)
    holding = {split: np.zeros(len(SEGMENTS), np.int64) for split in counts}  # images with each class
    for split, count in counts.items():
        images: list[dict[str, Any]] = []
        objects: list[dict[str, Any]] = []
        for index in range(count):
            drawn = draw(index, split=split, size=size, seed=seed)  # type: ignore[arg-type]
            jpeg = _jpeg(drawn.image)
            _write_class(folder / "folders" / split, index, drawn, jpeg)
            _write_label_map(folder / "ade20k", split, index, drawn, jpeg)
            image_id = FIRST_ID + ID_STEP * index
            name = f"{image_id:012}.jpg"
            _write(folder / "coco" / f"{split}2017" / name, jpeg)
            images.append({"id": image_id, "file_name": name, "height": size, "width": size})
            objects += _annotations(drawn, image_id, first=len(objects))
            pixels_by_class = np.bincount(drawn.labels[drawn.labels != IGNORE], minlength=len(SEGMENTS))
            pixels += pixels_by_class
            holding[split] += pixels_by_class > 0
            yield f"{split}/{index}"
        categories = [{"id": i, "name": n} for i, n in zip(CATEGORIES, CLASSES, strict=True)]
        table = {"info": {}, "images": images, "annotations": objects, "categories": categories}
        text = json.dumps(table).encode()
        _write(folder / "coco" / "annotations" / f"instances_{split}2017.json", text)
    lines = ["Idx\tRatio\tTrain\tVal\tName"]
    for i, name in enumerate(SEGMENTS):
        numbers = f"{pixels[i] / pixels.sum():.4f}\t{holding['train'][i]}\t{holding['val'][i]}"
        lines.append(f"{i + 1}\t{numbers}\t{name}")
    _write(folder / "ade20k" / "objectInfo150.txt", "\n".join([*lines, ""]).encode())


def _write_class(folder: Path, index: int, drawn: Drawing, jpeg: bytes) -> None:
    largest = max(drawn.shapes, key=lambda shape: int(shape.mask.sum()))
    _write(folder / CLASSES[largest.label] / f"{index:06}.jpg", jpeg)


def _write_label_map(folder: Path, split: str, index: int, drawn: Drawing, jpeg: bytes) -> None:
    part = {"train": "training", "val": "validation"}[split]
    stem = f"ADE_{split}_{index + 1:08}"
    buffer = io.BytesIO()
    labels = np.where(drawn.labels == IGNORE, 0, drawn.labels + 1).astype(np.uint8)
    Image.fromarray(labels).save(buffer, "png")
    _write(folder / "images" / part / f"{stem}.jpg", jpeg)
    _write(folder / "annotations" / part / f"{stem}.png", buffer.getvalue())


def _annotations(drawn: Drawing, image_id: int, first: int) -> list[dict[str, Any]]:
    """COCO annotations of the objects of a drawing; ids start at `first`."""
    annotations = []
    for i, shape in enumerate(drawn.shapes):
        x1, y1, x2, y2 = shape.box
        annotations.append(
            {
                "id": 3 * (first + i) + 1,
                "image_id": image_id,
                "category_id": CATEGORIES[shape.label],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": int(shape.mask.sum()),
                "iscrowd": 0,
                "segmentation": segmentation(shape.mask),
            }
        )
    return annotations


def segmentation(mask: np.ndarray) -> Any:
    """COCO segmentation of a mask bool (H, W): polygons along pixel edges, or run lengths if it has a hole."""
    loops = outlines(mask)
    if any(_area(loop) < 0 for loop in loops):
        flat = mask.flatten(order="F")
        ends = np.flatnonzero(np.diff(flat)) + 1
        counts = np.diff([0, *([0] if flat[0] else []), *ends, flat.size]).tolist()
        return {"size": list(mask.shape), "counts": counts}
    return [[value for point in loop for value in point] for loop in loops]


def outlines(mask: np.ndarray) -> list[list[Point]]:
    """Edges of a mask bool (H, W) as closed loops of corners; loops around holes run in the opposite direction."""
    padded = np.pad(mask, 1).astype(np.int8)
    after: dict[Point, list[Point]] = {}  # from a corner along an edge, the mask on the right hand
    down, right = np.diff(padded, axis=0)[:, 1:-1], np.diff(padded, axis=1)[1:-1]
    for y, x in np.argwhere(down).tolist():
        a, b = ((x, y), (x + 1, y)) if down[y, x] > 0 else ((x + 1, y), (x, y))
        after.setdefault(a, []).append(b)
    for y, x in np.argwhere(right).tolist():
        a, b = ((x, y + 1), (x, y)) if right[y, x] > 0 else ((x, y), (x, y + 1))
        after.setdefault(a, []).append(b)
    loops = []
    while after:
        loops.append(_loop(after))
    return loops


def _loop(after: dict[Point, list[Point]]) -> list[Point]:
    """Remove one closed loop from `after`, reduced to its corners. Where two loops touch, it turns right."""
    start = here = next(iter(after))
    step: Point | None = None
    corners: list[Point] = []
    while step is None or here != start:
        ways = [(x - here[0], y - here[1]) for x, y in after[here]]
        turned = None if step is None else (-step[1], step[0])
        way = turned if turned in ways else ways[0]
        if way != step:
            corners.append(here)
        there = here[0] + way[0], here[1] + way[1]
        after[here].remove(there)
        if not after[here]:
            del after[here]
        here, step = there, way
    return corners


def _area(loop: list[Point]) -> float:
    """Signed area of a loop of corners; negative for a loop around a hole."""
    return sum(a[0] * b[1] - b[0] * a[1] for a, b in zip(loop, [*loop[1:], loop[0]], strict=True)) / 2


def _jpeg(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "jpeg", quality=95, subsampling=0)
    return buffer.getvalue()


def _write(file: Path, data: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
