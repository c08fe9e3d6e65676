"""Commands on sets of objects and label maps: refused with exit code 2 and one line, or trained as the plain one."""

import json

import numpy as np
import pytest
from PIL import Image
from tests.cases.test_objects import COCO, coco, picture, voc, yolo


def masks(root, numbers):
    """Label maps with these numbers for background and rectangles."""
    (root / "classes.txt").parent.mkdir(parents=True)
    (root / "classes.txt").write_text("background\nshape\n")
    for part, count in (("train", 4), ("val", 2)):
        for kind in ("images", "labels"):
            (root / kind / part).mkdir(parents=True)
        for i in range(count):
            image, boxes = picture(i)
            labels = np.full((96, 96), numbers[0], np.uint8)
            for _, x, y, w, h in boxes:
                labels[y : y + h, x : x + w] = numbers[1]
            image.save(root / "images" / part / f"{i}.jpg")
            Image.fromarray(labels).save(root / "labels" / part / f"{i}.png")


def keypoints(root):
    yolo(root, line=lambda values: " ".join([*values, *values[1:3]]))


def turned(root):
    coco(root)
    exif = Image.Exif()
    exif[0x0112] = 8
    for file in root.rglob("*.png"):
        with Image.open(file) as image:
            image.save(file, exif=exif)


def lost(root):
    coco(root)
    for file in (root / "train2017").iterdir():
        file.rename(root / file.name)
        (root / file.name).unlink()


REFUSED = {
    "voc_det": (
        voc,
        "voc_det",
        "12 objects of unknown classes (red, blue), left out; data.options.classes names",
    ),
    "keypoints": (keypoints, "yolo", "12 lines look like boxes with 1 keypoints each"),
    "turned": (
        turned,
        "coco",
        "orientation 8), and their annotations may be of the stored or of the upright pixels",
    ),
    "lost": (lost, "coco", "6 of the 6 images that instances_train2017.json lists are not in"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_is_one_line_with_its_cause(tmp_path, monkeypatch, tetravit, case):
    make, name, cause = REFUSED[case]
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "d")
    result = tetravit(f"train shapes-det data.name={name} data.root=d data.group=1")
    lines = [line for line in result.text.splitlines() if line.strip()]
    assert result.code == 2
    assert len(lines) == 1, lines
    assert cause in lines[0]


def test_masks_of_0_and_255(tmp_path, monkeypatch, tetravit):
    monkeypatch.chdir(tmp_path)
    masks(tmp_path / "d", (0, 255))
    result = tetravit("train shapes-seg data.name=label_folder data.root=d")
    assert result.code == 2
    assert result.text.startswith(
        "tetravit train: Only the class 'background' occurs in 4 label maps, beside "
    )
    assert result.text.rstrip().endswith(
        "data.options.values=[0,255] lists the numbers of the classes in their order."
    )


TINY = (
    "train shapes-det data.name=coco data.image_size=96 data.batch_size=2 data.workers=0 data.augment=flip steps=2"
    " run.log_steps=1"
)


@pytest.mark.slow
def test_losses_are_those_of_the_plain_set(tmp_path, monkeypatch, tetravit):
    monkeypatch.chdir(tmp_path)
    coco(tmp_path / "plain")
    coco(tmp_path / "deformed")
    file = tmp_path / "deformed" / "annotations" / "instances_train2017.json"
    table = json.loads(file.read_text())
    for change in ("flat polygon", "backslashes", "image ids as text", "no sizes", "annotation ids repeat"):
        COCO[change](table, tmp_path / "deformed", "train")
    file.write_text(json.dumps(table))
    losses = []
    for name in ("plain", "deformed"):
        assert tetravit(f"{TINY} data.root={name} --into run_{name}").code == 0
        rows = [
            json.loads(line) for line in (tmp_path / f"run_{name}" / "metrics.jsonl").read_text().splitlines()
        ]
        losses.append([row["loss"] for row in rows if "loss" in row])
    assert len(losses[0]) == 2
    assert losses[0] == losses[1]


def test_a_head_with_masks_on_data_without_them(tmp_path, monkeypatch, tetravit):
    monkeypatch.chdir(tmp_path)
    coco(tmp_path / "d")
    for file in (tmp_path / "d" / "annotations").iterdir():
        table = json.loads(file.read_text())
        for row in table["annotations"]:
            row["segmentation"] = []
        file.write_text(json.dumps(table))
    result = tetravit("train shapes-det data.name=coco data.root=d model.head=mask_rcnn --into run")
    assert result.code == 2
    assert result.text == (
        "tetravit train: The head 'mask_rcnn' trains on masks, and no training object has one; model.head=retinanet"
        " trains on boxes alone.\n"
    )
    assert not (tmp_path / "run").exists()
