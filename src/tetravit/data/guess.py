"""Which data set has the layout of a folder, by the names in it."""

import os
from collections.abc import Iterator
from pathlib import Path

from tetravit.data.lookup import visible_files
from tetravit.data.parts import NAMES, PARTS, Part

# What `fits` recognizes by names that others do not have.
TELLING = ("shards", "coco", "yolo", "voc_det", "label_folder", "image_list")

IMAGES, MAPS = {"images", "image", "imgs", "img"}, {"masks", "mask", "labelmaps", "segmentationclass"}


def guess(root: Path) -> str:
    """The data set in the menu whose layout matches the names in a folder."""
    fitting = fits(root)
    if fitting:
        return fitting[0]
    folders = [entry.path for entry in os.scandir(root) if entry.is_dir()]
    parts = [folder for folder in folders if part_named(os.path.basename(folder))]
    if any(entry.is_dir() for folder in parts or [str(root)] for entry in os.scandir(folder)):
        return "image_folder"
    return "unlabelled"


def fits(root: Path) -> list[str]:
    """Those of `TELLING` whose files a folder has, the likeliest first."""
    names = {entry.name.lower() for entry in os.scandir(root)}
    below = {name.lower() for name in _below(root)}
    has = {
        "shards": any(name.endswith((".index", ".tar")) for name in names),
        "coco": "_annotations.coco.json" in below | names or visible_files(root / "annotations", ".json"),
        "yolo": "data.yaml" in names,
        "voc_det": {"jpegimages", "annotations"} <= names,
        "label_folder": names & {"classes.txt", "labelmap.txt", "class_dict.csv"}
        or (names & IMAGES and names & MAPS),
        "image_list": any(
            f"{part}{end}" in names for part in NAMES["train"] for end in (".csv", ".tsv", ".txt")
        ),
    }
    return [name for name in TELLING if has[name]]


def part_named(name: str) -> Part | None:
    """The part that a folder is called after: "train2017" is "train"; None: it is called otherwise."""
    lowered = name.lower().rstrip("0123456789")
    return next((part for part in PARTS if lowered in NAMES[part]), None)


def _below(root: Path) -> Iterator[str]:
    for entry in os.scandir(root):
        if entry.is_dir():
            yield from (inner.name for inner in os.scandir(entry.path))
