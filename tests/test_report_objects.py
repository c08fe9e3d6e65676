"""The report of a detector: figures, curves, classes, drawn detections, the first training images."""

import json

import pytest
import torch

from tetravit.data.layouts import write_shapes
from tetravit.data.shapes import CLASSES
from tetravit.models import create_detector, save
from tetravit.report import write
from tetravit.report.maps import Maps, false_detections
from tetravit.report.run import read
from tetravit.rle import encode_masks
from tetravit.structures import Preprocess

RECIPE = """
epochs = 9
[task]
name = "detect"
[model]
name = "xcit_nano_12_p16"
[data]
name = "shapes_det"
image_size = 64
batch_size = 2
augment = "flip"
mode = "fit"
options = { size = 64, count = 3 }
"""


@pytest.fixture
def run(tmp_path):
    from tetravit.data.datasets import DATASETS

    target = DATASETS["shapes_det"](None, "val", size=64, count=3)[1].target
    masks = [text.decode() for text in encode_masks(target.masks)]
    truth = {"boxes": target.boxes.tolist(), "labels": target.labels.tolist(), "masks": masks}
    found = {**truth, "scores": [0.75] * len(masks)}
    rows = [
        {"objects": i, "box_ap": i / 8 if i else None, "mask_ap": i / 10 if i else None} for i in range(8)
    ]
    for row in rows:
        row |= {f"{kind}_{name}": row["box_ap"] for kind in ("box", "mask") for name in ("ap50", "ar100")}
    figures = {"ap": 0.61, "ap50": 0.9, "ap75": 0.7, "ap_small": 0.5, "ar1": 0.4, "ar10": 0.6, "ar100": 0.6}
    curves = {"0.50": [1.0] * 101, "0.75": [0.5] * 101, "0.50:0.95": [0.4] * 101}
    evaluation = {
        "step": 20, "epoch": 1.0, "weights": "ema", "box_ap": 0.61, "mask_ap": 0.57, "box_ap50": 0.9, "count": 3,
        "objects": 28, "class_names": CLASSES, "classes": rows, "figures": {"box": figures, "mask": figures},
        "curves": {"box": curves, "mask": curves},
        "pictures": [{"name": "a<b", "index": 1, "size": [64, 64], "truth": truth, "detections": found}],
    }  # fmt: skip
    (tmp_path / "recipe.toml").write_text(RECIPE)
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation))
    lines = [{"event": "evaluation", "step": s, "box_ap": s / 40, "mask_ap": s / 50} for s in (10, 20)]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return tmp_path


def test_everything_is_shown(run):
    html = write(run).read_text()
    for words in (
        "Mask AP", "57.00 %", "EMA weights of step 20", "28 objects", "Average precision", "COCO metrics",
        "AP of small objects", "boxes at IoU 0.50", "masks at IoU 0.75", "Validation images", "a&lt;b",
        "First training images", "Find objects in your own images",
    ):  # fmt: skip
        assert words in html, words
    assert html.count("data:image/") == 2 + 2  # prediction and truth; a batch of two
    assert (
        html.index("<td>ring<") < html.index("<td>star<") < html.index("<td>circle<")
    )  # weakest, best, none


def test_what_the_data_held_in_vain_is_listed(run, tmp_path):
    list(write_shapes(tmp_path / "data", train=3, val=2, size=64))
    root = tmp_path / "data" / "coco"
    for split, box in (("train", [1, 1, 0, 5]), ("val", [99, 1, 5, 5])):
        file = root / "annotations" / f"instances_{split}2017.json"
        content = json.loads(file.read_text())
        content["annotations"][0]["bbox"] = box
        file.write_text(json.dumps(content))
    recipe = RECIPE.replace('"shapes_det"', f'"coco"\nroot = "{root}"').replace("options", "#")
    (run / "recipe.toml").write_text(recipe)
    html = write(run).read_text()
    first = "instances_train2017.json, annotation 1"
    assert (
        f"<td>training</td><td>1 boxes with zero or negative sides, left out; the first: {first}</td>" in html
    )
    first = "instances_val2017.json, annotation 1"
    assert f"<td>validation</td><td>1 boxes outside their image, left out; the first: {first}</td>" in html
    (run / "recipe.toml").write_text(RECIPE)
    assert "Left out of the data" not in write(run).read_text()


def test_what_is_not_there_is_left_out(run):
    (run / "evaluation.json").unlink()
    (run / "recipe.toml").write_text(RECIPE.replace('"shapes_det"', '"coco"').replace("options", "#"))
    html = write(run).read_text()
    assert "Validation images" not in html
    assert "First training images" not in html
    assert "Average precision" in html


def test_the_most_confident_false_detections_come_first():
    truth = {"boxes": [[0, 0, 10, 10]], "labels": [1]}
    found = {
        "boxes": [[0, 0, 10, 9], [0, 0, 10, 10], [20, 20, 30, 30], [40, 40, 50, 50]],
        "labels": [1, 2, 1, 1],
        "scores": [0.9, 0.8, 0.95, 0.1],
    }
    entry = {"detections": found, "truth": truth}
    assert [i for _, i in false_detections([entry], 2)] == [2, 1]


@pytest.mark.slow
def test_the_map_of_a_detection_is_that_of_its_box_and_class(run):
    torch.manual_seed(0)
    options = {"width": 16, "score_threshold": 0.0, "max_detections": 5}
    model = create_detector(
        "xcit_nano_12_p16", head="retinanet", num_classes=len(CLASSES), head_options=options
    )
    model.input = Preprocess(size=64, mode="fit", longest=96, interpolation="bilinear")
    model.eval()
    image = (255 * torch.rand(3, 80, 100)).byte()
    found = model.detect(model.preprocess(image)[None], output_sizes=[[80, 100]])[0]
    save(model, run / "best.safetensors")
    maps = Maps(read(run))
    made = maps.of_detection(image, int(found.labels[3]), found.boxes[3].tolist(), "x")
    assert made.startswith('<img src="data:image/')
    assert maps.of_detection(image, int(found.labels[3]), [0.0, 0.0, 1.0, 1.0], "x") == ""
