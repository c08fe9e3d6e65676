"""Training detectors: the sum of the head's losses, COCO's scores, and what a report is left with."""

import json

import pytest
import torch
from PIL import Image
from task_toys import START, data_section, described, scored

from tetravit.data.config import DataConfig
from tetravit.data.evaluation import make_eval_loader
from tetravit.data.layouts import write_shapes
from tetravit.data.loader import make_train_loader
from tetravit.engine.log import Reporter
from tetravit.metrics.coco_ap import CocoAP
from tetravit.protocols import Loaders
from tetravit.protocols.coco import Coco, CocoConfig
from tetravit.recipe import list_recipes, load
from tetravit.runs import train
from tetravit.structures import Batch, Detections, Target
from tetravit.tasks import TASKS

SMALL = {"width": 16, "num_samples": 8, "num_candidates": 20, "num_proposals": 20, "anchor_scale": 6.0}
INFO = described(8, "detect")
DATA = DataConfig(
    name="shapes_det",
    image_size=64,
    batch_size=2,
    augment="flip",
    mode="fit",
    options={"size": 64, "count": 4},
)


def task(head="mask_rcnn", **section):
    torch.manual_seed(0)
    row = TASKS["detect"]
    options = {"head_options": SMALL} if head != "retinanet" else {"head_options": {"width": 16}}
    model = row.create("xcit_nano_12_p16", data=INFO, head=head, depth=4, out_blocks=(0, 1, 2, 3), **options)
    return row(model, row.Config(name="detect", **section), INFO)


def batch():
    loader = make_train_loader(DATA, seed=0)
    return next(loader.batches())[0]


def test_a_step_sums_the_losses_of_the_head_and_logs_each():
    trained = task().train()
    values = trained.step(batch(), START)
    loss = values.pop("loss")
    assert set(values) == {"loss_rpn_class", "loss_rpn_box", "loss_class", "loss_box", "loss_mask"}
    assert loss.item() == pytest.approx(sum(v.item() for v in values.values()), rel=1e-6)
    loss.backward()
    idle = [n for n, p in trained.named_parameters() if p.requires_grad and p.grad is None]
    assert idle == []


def test_scores_of_a_perfect_detector_are_1_and_findings_are_plain(monkeypatch):
    judged = task().eval()

    def perfect(images, sizes=None, *, output_sizes, masks, steps=False):
        found = []
        for target in now.targets:
            probabilities = torch.stack(
                [_crop(m, b) for m, b in zip(target.masks, target.boxes, strict=True)]
            )
            found.append(
                Detections(target.boxes, torch.ones(len(target.boxes)), target.labels, probabilities)
            )
        return found

    monkeypatch.setattr(judged.model, "detect", perfect)
    scores = None
    for now in make_eval_loader(DATA):  # one batch at a time, so that `perfect` knows it
        scores = scored(judged, [now])
    scores, findings = scores.values, scores.findings
    assert scores["box_ap"] == pytest.approx(1.0)
    assert scores["mask_ap50"] == pytest.approx(1.0)
    assert {"box_ap50", "box_ap75", "box_ar100", "mask_ap", "box_ap_small"} <= set(scores)
    findings = json.loads(json.dumps(findings))
    assert findings["count"] == 2
    assert len(findings["classes"]) == 8
    assert findings["objects"] == sum(row["objects"] for row in findings["classes"])
    assert len(findings["curves"]["box"]["0.50"]) == 101
    picture = findings["pictures"][0]
    assert picture["truth"]["boxes"] == picture["detections"]["boxes"]
    assert picture["detections"]["scores"] == [1.0] * len(picture["detections"]["labels"])
    assert picture["name"].startswith("shapes_det/val/")


def _crop(mask, box):
    x1, y1, x2, y2 = box.int().tolist()
    part = mask[y1:y2, x1:x2].float()[None, None]
    return torch.nn.functional.interpolate(part, size=(28, 28), mode="bilinear")[0, 0]


@pytest.mark.slow
def test_an_untrained_detector_is_scored_on_real_batches():
    """The same as asking about each image alone, pasting its masks whole, and counting with pycocotools."""
    pytest.importorskip("pycocotools")
    judged = task().eval()
    loader = make_eval_loader(DATA.model_copy(update={"short": 48}))  # seen smaller than they are
    by_hand = CocoAP(8, masks=True, engine="pycocotools")
    with torch.no_grad():
        scores = scored(judged, loader).values
        for batch in loader:
            for image, target in zip(batch.images, batch.targets, strict=True):
                found = judged.model.detect(image[None], output_sizes=[(64, 64)], masks="pasted")[0]
                by_hand.add(target, found)
    expected = {
        f"{kind}_{name}": v for kind in ("box", "mask") for name, v in by_hand.average(kind).scores().items()
    }
    assert scores == pytest.approx(expected, abs=1e-6)
    assert scores["box_ar100"] > 0
    assert 48 < max(objects.boxes.max() for objects in by_hand.detections) <= 64  # in pixels of the original
    assert Coco().primary(scores) == "mask_ap"


def test_without_masks_boxes_decide(caplog):
    judged, protocol = task().eval(), Coco()
    bare = Target(torch.tensor([[4.0, 4, 40, 40]]), torch.tensor([1]), image_id=3, size=(64, 64))
    with torch.no_grad():
        for _ in range(2):
            images = [Batch(torch.zeros(1, 3, 64, 64), [bare])]
            scores = protocol.score(judged.model, Loaders(images, INFO)).values
    assert protocol.primary(scores) == "box_ap"
    assert caplog.messages == [
        "The validation set has no masks: boxes alone are scored, and box_ap selects the best weights."
    ]
    assert not any(name.startswith("mask") for name in scores)


def test_made_up_images_take_a_step():
    trained = task().train()
    values = trained.step(trained.example(2, 64), START)
    assert values["loss"].isfinite()
    wide = trained.example(1, (64, 96))
    assert wide.images.shape == (1, 3, 64, 96)
    assert wide.targets[0].masks.shape == (8, 64, 96)
    assert (wide.targets[0].boxes <= torch.tensor([96, 64, 96, 64])).all()


def test_recomputing_the_backbone_changes_no_gradient():
    grads = []
    for recompute in ("off", "backbone"):
        trained = task(recompute=recompute).train()
        torch.manual_seed(1)
        trained.step(batch(), START)["loss"].backward()
        grads.append(trained.model.backbone.blocks[0].mlp.fc1.weight.grad)
    torch.testing.assert_close(*grads)


def test_what_is_refused():
    row = TASKS["detect"]
    model = task().model
    with pytest.raises(ValueError) as error:
        row(model, row.Config(name="detect"), described(7, "detect"))
    assert str(error.value) == "The model has 8 classes; the data has 7."
    with pytest.raises(ValueError) as error:
        row(model, row.Config(name="detect"), INFO).prepare(data_section("mixup(0.8)"))
    assert str(error.value) == ("The task 'detect' mixes no images; got data.mix='mixup(0.8)'.")
    with pytest.raises(ValueError) as error:
        scored(task(), [])
    assert str(error.value) == "The set to score on is empty."


def test_compiling_a_detector_compiles_its_backbone_and_what_its_head_makes_of_maps(monkeypatch):
    calls = []

    def compiled(function, *args, **kwargs):
        def run(x, *others):
            calls.append(x.shape if isinstance(x, torch.Tensor) else [m.shape[2] for m in x])
            return function(x, *others)

        return run

    trained = task().train()
    monkeypatch.setattr(torch, "compile", compiled)
    names = set(trained.state_dict())
    trained.model.compile()
    assert set(trained.state_dict()) == names
    assert trained.step(batch(), START)["loss"].isfinite()
    assert calls == [(2, 3, 64, 64), [16, 8, 4, 2]]


def test_what_counts_is_asked_for_before_the_first_step(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError) as error:
        Coco().prepare(Loaders([], INFO))
    assert str(error.value) == (
        "COCO's average precision needs faster-coco-eval or pycocotools: pip install 'tetravit[coco]'."
    )


def test_a_run_tells_what_it_cannot_train_on_and_how_large_batches_become(tmp_path, monkeypatch):
    list(write_shapes(tmp_path, train=3, val=1, size=64))
    file = tmp_path / "coco" / "annotations" / "instances_train2017.json"
    table = json.loads(file.read_text())
    table["annotations"] = [
        row for row in table["annotations"] if row["image_id"] != table["images"][1]["id"]
    ]
    file.write_text(json.dumps(table))
    recipe = load(
        list_recipes()["shapes-det"],
        [
            "data.name=coco",
            f"data.root={tmp_path / 'coco'}",
            "data.batch_size=2",
            "data.image_size=32",
            "data.options={}",
            "data.augment=fit(40, 64) | flip",
        ],
    )
    sizes = []
    monkeypatch.setattr("tetravit.runs.plan.profile_step", lambda task, *, size, **_: sizes.append(size))

    class Told(Reporter):
        def start(self, plan):
            self.lines = [text for label, text in plan.lines if label == "left out"]
            self.data = dict(plan.lines)["data"]

    told = Told()
    train(recipe, tmp_path / "run", reporters=[told], dry_run=True)
    name = table["images"][1]["file_name"]
    assert told.lines == [f"1 images without an object to train on, left out; the first: {name}"]
    assert told.data == "coco: 2 training images, 1 validation images, up to 64 x 64 pixels"
    assert sizes == [(64, 64)]


def annotated(root, boxes):
    """COCO's layout: two images of a part, each with `boxes` objects."""
    for part in ("train", "val"):
        count = boxes if part == "val" else 2
        (root / f"{part}2017").mkdir(parents=True)
        images, rows = [], []
        for i in range(2):
            Image.new("RGB", (64, 64)).save(root / f"{part}2017" / f"{i}.png")
            images.append({"id": i, "file_name": f"{i}.png", "width": 64, "height": 64})
            for k in range(count):
                box = [k % 15 * 4, k // 15 * 4, 4, 4]
                rows.append(
                    {
                        "id": len(rows) + 1,
                        "image_id": i,
                        "category_id": 1,
                        "bbox": box,
                        "area": 16,
                        "iscrowd": 0,
                    }
                )
        table = {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "dot"}]}
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{part}2017.json").write_text(json.dumps(table))
    return root


def noted(root, **config):
    data = DataConfig(name="coco", root=str(root), batch_size=1)
    loader = make_eval_loader(data)
    return Coco(CocoConfig(**config)).prepare(Loaders(loader, loader.dataset.info))


def test_sets_with_more_objects_than_count_are_named(tmp_path):
    many = annotated(tmp_path / "many", 150)
    assert noted(many) == [
        "images to score on have up to 150 objects; 100 detections per image count"
        " (evaluate.max_detections=150 raises the limit)"
    ]
    assert noted(many, max_detections=150) == []


def test_the_limit_of_detections_is_an_option():
    """150 objects, all detected: the last 50 count only where the limit is raised."""
    boxes = torch.tensor(
        [[4.0 * (k % 15), 4.0 * (k // 15), 4.0 * (k % 15) + 4, 4.0 * (k // 15) + 4] for k in range(150)]
    )
    labels = torch.zeros(150, dtype=torch.int64)
    scores = {}
    for limit in (100, 150):
        judge = CocoAP(1, max_detections=limit)
        judge.add(Target(boxes, labels, size=(64, 64)), Detections(boxes, torch.ones(150), labels))
        scores[limit] = judge.average("box").scores()
    assert scores[100]["ar100"] == pytest.approx(100 / 150)
    assert scores[150]["ar150"] == scores[150]["ap"] == pytest.approx(1.0)
