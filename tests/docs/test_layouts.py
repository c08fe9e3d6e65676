"""docs/layouts.md: every tree is made as it is drawn, and read as the data set of its heading."""

import json
import re

import numpy as np
import pytest
from PIL import Image
from tests.docs.tools import DOCS

from tetravit.data.datasets import DATASETS

PAGE = (DOCS / "layouts.md").read_text()
LABELS = {"labels", "annotations", "SegmentationClass"}
XML = """<annotation><filename>{name}.jpg</filename><size><width>40</width><height>40</height><depth>3</depth></size>
<object><name>dog</name><difficult>0</difficult>
<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>36</xmax><ymax>36</ymax></bndbox></object></annotation>"""
COCO = {
    "categories": [{"id": 3, "name": "red"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 1, 30, 30], "area": 900, "iscrowd": 0}
    ],
}
# What is in the files of a tree that are no images, where the page does not show it.
TEXTS = {
    "val.csv": "image,label\nphotos/c.jpg,dog\n",
    "ImageSets/Main/train.txt": "a\n",
    "ImageSets/Main/val.txt": "b\n",
    "ImageSets/Segmentation/train.txt": "2007_000032\n",
    "ImageSets/Segmentation/val.txt": "2007_000033\n",
    "classes.txt": "road\nsky\n",
    "labels/val/b.txt": "1 0.5 0.5 0.4 0.3\n",
}
# Releases of whole archives, and files of other packages: their tests make them.
NOT_MADE = {
    *(
        "hf",
        "shards",
        "cifar10",
        "mnist",
        "flowers",
        "cars",
        "inat18",
        "imagenet_v2",
        "imagenet_real",
        "cityscapes",
    ),
}
HEADINGS = re.findall(r"^### (\w+)$", PAGE, re.M)


def section(name):
    return PAGE.partition(f"\n### {name}\n")[2].partition("\n### ")[0]


def paths(name):
    """The files of a tree, relative to ROOT."""
    lines = re.search(r"```text\nROOT/\n(.*?)```", section(name), re.S)[1].splitlines()
    above, found = [], []
    for line in lines:
        depth, entry = (len(line) - len(line.lstrip())) // 2, line.strip()
        above = [*above[: depth - 1], entry.rstrip("/")]
        if not entry.endswith("/"):
            found.append("/".join(above))
    return found


def make(name, root):
    shown = dict(re.findall(r"^`([\w./]+)`[^\n]*\n\n```text\n(.*?)```", section(name), re.M | re.S))
    for path in paths(name):
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        text = next((t for end, t in {**TEXTS, **shown}.items() if path.endswith(end)), None)
        if text is not None:
            file.write_text(text)
        elif file.suffix == ".xml":
            file.write_text(XML.format(name=file.stem))
        elif file.suffix == ".json":
            image = "000000000139.jpg" if "train" in file.stem else "000000000285.jpg"
            table = {**COCO, "images": [{"id": 1, "file_name": image, "width": 40, "height": 40}]}
            file.write_text(json.dumps(table))
        elif file.suffix == ".png" and LABELS & {*file.parts}:
            values = np.ones((40, 40), np.uint8)
            values[:20] = 2 if name == "ade20k" else 0
            Image.fromarray(values).save(file)
        else:
            Image.fromarray(np.full((40, 40, 3), hash(path) % 200, np.uint8)).save(file)


@pytest.mark.parametrize("name", [name for name in HEADINGS if name not in NOT_MADE])
def test_a_tree_is_read(name, tmp_path):
    make(name, tmp_path)
    for part in ("train", "val"):
        if name == "unlabelled" and part == "val":
            continue
        dataset = DATASETS[name](str(tmp_path), part)
        assert len(dataset) > 0
        assert dataset[0].image.shape[1:] == (40, 40)


def test_what_is_not_made_is_a_heading():
    assert set(HEADINGS) >= NOT_MADE
