"""Predictions as files of annotation tools, read by pycocotools; by FiftyOne and datumaro (CVAT) where installed."""

import json

import pytest
import torch
from PIL import Image

import tetravit
from tetravit.bridges.annotations import write_classes, write_coco
from tetravit.predictors.parts.classes import Classes, Guess
from tetravit.predictors.parts.objects import Object, Objects
from tetravit.rle import encode_masks

NAMES = ("cat", "dog")


def mask():
    inside = torch.zeros(1, 20, 30, dtype=torch.bool)
    inside[0, 2:6, 3:9] = True
    return encode_masks(inside)[0]


def detections(folder):
    """Two images, one in a folder below; two objects with masks, and none."""
    (folder / "b").mkdir()
    files = [folder / "a.png", folder / "b" / "c.png"]
    for file in files:
        Image.new("RGB", (30, 20)).save(file)
    objects = (
        Object(1, "dog", 0.9, (3.0, 2.0, 9.0, 6.0), mask()),
        Object(0, "cat", 0.25, (3.0, 2.0, 9.0, 6.0), mask()),
    )
    return [
        Objects(files[0], None, objects, (20, 30), categories=(1, 2)),
        Objects(files[1], None, (), (20, 30), categories=(1, 2)),
        Objects(folder / "broken.png", "it is cut off"),
    ]


def test_detections_are_a_coco_data_set(tmp_path):
    table = write_coco(detections(tmp_path), tmp_path / "found.json", NAMES)
    assert json.loads((tmp_path / "found.json").read_text()) == table
    assert [row["file_name"] for row in table["images"]] == ["a.png", "b/c.png"]
    assert table["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    first = table["annotations"][0]
    assert {**first, "segmentation": None} == {
        "id": 1, "image_id": 1, "category_id": 2, "bbox": [3.0, 2.0, 6.0, 4.0], "score": 0.9, "area": 24.0,
        "iscrowd": 0, "segmentation": None,
    }  # fmt: skip


def test_pycocotools_reads_it(tmp_path):
    coco = pytest.importorskip("pycocotools.coco")
    write_coco(detections(tmp_path), tmp_path / "found.json", NAMES)
    read = coco.COCO(tmp_path / "found.json")
    (first, second) = read.loadAnns(read.getAnnIds(imgIds=1))
    assert read.annToMask(first).sum() == 24
    assert read.loadCats(second["category_id"])[0]["name"] == "cat"


def test_datumaro_reads_it_as_cvat_does(tmp_path):
    dm = pytest.importorskip("datumaro")
    (tmp_path / "annotations").mkdir()
    rows = detections(tmp_path)
    write_coco(rows, tmp_path / "annotations" / "instances_default.json", NAMES)
    read = dm.Dataset.import_from(str(tmp_path), "coco")
    items = {item.id: item for item in read}
    assert set(items) == {"a", "b/c"}
    masks = [a for a in items["a"].annotations if a.type == dm.AnnotationType.mask]
    assert [int(m.image.sum()) for m in masks] == [24, 24]
    names = read.categories()[dm.AnnotationType.label]
    assert {names[m.label].name: m.attributes["score"] for m in masks} == {"dog": 0.9, "cat": 0.25}


def test_fiftyone_reads_both(tmp_path):
    fo = pytest.importorskip("fiftyone")
    rows = detections(tmp_path)
    write_coco(rows, tmp_path / "found.json", NAMES)
    importer = fo.utils.coco.COCODetectionDatasetImporter(
        data_path=str(tmp_path), labels_path=str(tmp_path / "found.json"), label_types="detections"
    )
    with importer:
        read = {path: label for path, _, label in importer}
    found = read[str(tmp_path / "a.png")].detections
    assert [(d.label, d.confidence) for d in found] == [("dog", 0.9), ("cat", 0.25)]
    assert found[0].bounding_box == pytest.approx([0.1, 0.1, 0.2, 0.2])
    write_classes(guesses(tmp_path), tmp_path / "labels.json", NAMES)
    importer = fo.utils.data.FiftyOneImageClassificationDatasetImporter(
        data_path=str(tmp_path), labels_path=str(tmp_path / "labels.json")
    )
    with importer:
        read = {path: label for path, _, label in importer}
    label = read[str(tmp_path / "a.png")]
    assert (label.label, label.confidence) == ("dog", 0.75)


def guesses(folder):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (30, 20)).save(folder / name)
    return [
        Classes(folder / "a.png", None, (Guess(1, "dog", 0.75), Guess(0, "cat", 0.25))),
        Classes(folder / "b.png", None, (Guess(0, "cat", 0.5),)),
    ]


def test_classes_are_fiftyones_labels(tmp_path):
    table = write_classes(guesses(tmp_path), tmp_path / "labels.json", NAMES)
    assert table == {
        "classes": ["cat", "dog"],
        "labels": {
            "a": {"label": "dog", "confidence": 0.75},
            "b": {"label": "cat", "confidence": 0.5},
        },
    }


def test_a_detector_end_to_end(tmp_path):
    model = tetravit.create_detector(
        "twins_svt_small",
        head="retinanet",
        num_classes=2,
        depths=(1, 1, 1, 1),
        head_options={"score_threshold": 0.0, "max_detections": 3},
    )
    model.set_input(tetravit.Preprocess(size=64, longest=96, mode="fit"))
    model.class_names = NAMES
    Image.linear_gradient("L").resize((96, 64)).convert("RGB").save(tmp_path / "a.png")
    found = tetravit.predict(model, [tmp_path / "a.png"], threshold=0.0)
    table = write_coco(found, tmp_path / "found.json", model.class_names)
    assert len(table["annotations"]) == len(found[0].objects) > 0
    single = tetravit.predict(model, tmp_path / "a.png", threshold=0.0)
    assert write_coco(single, tmp_path / "one.json", model.class_names) == table


def test_other_predictions_are_one_line(tmp_path):
    rows = detections(tmp_path)
    with pytest.raises(ValueError, match=r"^This file holds predictions of a classifier; got Objects.$"):
        write_classes(rows, tmp_path / "x.json", NAMES)
    frame = tetravit.predictors.parts.predictions.Frame("frame", torch.zeros(3, 4, 4, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"^Annotation tools find images by their files; frame is none.$"):
        write_coco([Objects(frame, None, (), (4, 4), categories=(1, 2))], tmp_path / "x.json", NAMES)
