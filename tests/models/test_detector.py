"""Detectors: what `detect` and `loss` take, files, what is refused, and the exported graph."""

import math

import pytest
import torch
from dense.answers import DenseGolden

from tetravit.boxes.sampling import Sampler
from tetravit.data.coco import class_names
from tetravit.models import Detector, create_detector, load, save
from tetravit.models.create import load_weights
from tetravit.structures import COCO_INPUT, Batch, Target
from tetravit.weights import CHECKPOINTS, convert
from tetravit.weights.read import BadFile

pytestmark = pytest.mark.slow  # whole detectors and segmentors

HEADS = ["retinanet", "mask_rcnn", "cascade"]
SMALL = {"num_proposals": 40, "max_detections": 20}


def small(head: str, model: str = "xcit_nano_12_p16", **options) -> Detector:
    """A detector of 5 classes whose scores are spread, so that there is something to find."""
    torch.manual_seed(0)
    options = {**(SMALL if head != "retinanet" else {"max_detections": 20}), **options}
    detector = create_detector(model, head=head, num_classes=5, head_options=options).eval()
    if head != "retinanet":
        detector.head.sampler, detector.head.train_proposals = Sampler(24, 0.25), 60
    with torch.no_grad():
        for name, parameter in detector.head.named_parameters():
            if name.endswith(("score.weight", "delta.weight")):
                spread = {"score": 2.0, "delta": 0.5}[name.split(".")[-2]]
                parameter.normal_(std=spread / math.sqrt(parameter[0].numel()))
            if head == "retinanet" and name == "score.bias":
                parameter.fill_(-2.0)
    return detector


def pictures(*sizes):
    """A padded batch and the sizes of its images."""
    height, width = (max(side) for side in zip(*sizes, strict=True))
    images = torch.zeros(len(sizes), 3, height, width)
    for image, (h, w) in zip(images, sizes, strict=True):
        image[:, :h, :w] = torch.randn(3, h, w)
    return images, list(sizes)


def target(boxes, labels, size=(96, 128), **fields):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    y, x = torch.arange(size[0])[:, None], torch.arange(size[1])
    masks = [(x >= b[0]) & (x < b[2]) & (y >= b[1]) & (y < b[3]) for b in boxes]
    masks = torch.stack(masks) if masks else torch.zeros(0, *size, dtype=torch.bool)
    return Target(boxes, torch.tensor(labels, dtype=torch.int64), masks, **fields)


@pytest.mark.parametrize("head", HEADS)
def test_boxes_lie_inside_their_image_and_scores_fall(head):
    detector = small(head)
    images, sizes = pictures((96, 128), (70, 61))
    for found, (height, width) in zip(detector.detect(images, sizes), sizes, strict=True):
        assert 0 < len(found.boxes) <= 20
        assert (found.boxes >= 0).all()
        assert (found.boxes <= torch.tensor([width, height, width, height])).all()
        assert (found.scores.diff() <= 0).all()
        assert found.scores.min() > 0.05
        assert found.labels.unique().tolist() == sorted(set(found.labels.tolist()) & set(range(5)))
        assert found.masks is None


@pytest.mark.parametrize("head", HEADS)
def test_an_image_is_found_the_same_alone_and_beside_a_larger_one(head):
    """RetinaNet and proposals see only zeros beyond the image, as they do alone."""
    detector = small(head)
    images, sizes = pictures((96, 128), (96, 96))
    (_, together), (alone,) = detector.detect(images, sizes), detector.detect(images[1:], sizes[1:])
    torch.testing.assert_close(together.boxes, alone.boxes, atol=1e-3, rtol=0)
    assert torch.equal(together.labels, alone.labels)


@pytest.mark.parametrize("head", ["mask_rcnn", "cascade"])
def test_masks_fit_any_output_size(head):
    detector = small(head)
    images, sizes = pictures((96, 128), (70, 61))
    plain = detector.detect(images, sizes, masks="probabilities")
    large = detector.detect(images, sizes, output_sizes=[(192, 384), (35, 61)], masks="pasted")
    for before, after, scale, size in zip(
        plain, large, ((3, 2), (1, 0.5)), ((192, 384), (35, 61)), strict=True
    ):
        assert before.masks.shape == (len(before.boxes), 28, 28)
        assert after.masks.shape == (len(before.boxes), *size)
        assert after.masks.dtype == torch.bool
        torch.testing.assert_close(after.boxes, before.boxes * torch.tensor(scale * 2))
        assert after.masks.any()


def test_threshold_leaves_out_low_scores():
    detector = small("retinanet")
    images, _ = pictures((96, 128))
    (everything,) = detector.detect(images)
    (some,) = detector.detect(images, threshold=everything.scores[4].item())
    assert torch.equal(some.boxes, everything.boxes[:5])


def test_nothing_is_found_where_no_score_is_high_enough():
    for head in HEADS:
        (found,) = small(head, score_threshold=0.999).detect(torch.zeros(1, 3, 64, 64))
        assert (len(found.boxes), len(found.scores), len(found.labels)) == (0, 0, 0)


@pytest.mark.parametrize("head", HEADS)
def test_the_loss_reaches_every_parameter_and_leaves_out_empty_boxes_and_crowds(head):
    detector = small(head).train()
    images, sizes = pictures((96, 128), (96, 96), (64, 64))
    bad = [[5, 5, 5, 40], [8, 8, 60, 60]]  # without area, and a crowd
    targets = [
        target([[10, 10, 60, 70], [30, 5, 120, 90]], [1, 4]),
        target(bad, [0, 0], crowd=torch.tensor([False, True])),
        target([], []),
    ]
    losses = detector.loss(Batch(images, targets, torch.tensor(sizes)))
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    missing = [
        name for name, p in detector.named_parameters() if p.grad is None or not p.grad.isfinite().all()
    ]
    unread = ["backbone.cls_token", "backbone.class_blocks.", "backbone.norm."]
    if head == "retinanet":
        unread.append("pyramid.levels.0.")  # the finest map
    assert [name for name in missing if not name.startswith(tuple(unread))] == []
    only_background = [target([], []) for _ in targets]
    cleaned = [targets[0], target([], []), targets[2]]
    torch.manual_seed(1)
    first = detector.eval().loss(Batch(images, targets, torch.tensor(sizes)))
    torch.manual_seed(1)
    second = detector.loss(Batch(images, cleaned, torch.tensor(sizes)))
    assert {k: v.item() for k, v in first.items()} == {k: v.item() for k, v in second.items()}
    nothing = detector.loss(Batch(images, only_background, torch.tensor(sizes)))
    assert nothing["loss_box" if head != "cascade" else "loss_box_1"] == 0


def test_an_image_without_masks_trains_boxes_only():
    detector = small("mask_rcnn")
    images = torch.randn(2, 3, 96, 128)
    box, label = torch.tensor([[10.0, 10, 60, 70]]), torch.tensor([1])
    masks = torch.zeros(1, 96, 128, dtype=torch.bool)
    losses = detector.loss(Batch(images, [Target(box, label), Target(box, label, masks=masks)]))
    assert losses["loss_mask"] > 0
    assert losses["loss_box"] > 0


def test_masks_have_the_size_of_the_batch_or_of_their_image():
    detector = small("mask_rcnn")
    images, sizes = torch.randn(1, 3, 96, 128), torch.tensor([[80, 100]])
    box, label = torch.tensor([[10.0, 10, 60, 70]]), torch.tensor([1])
    losses = []
    for height, width in ((96, 128), (80, 100)):
        masks = torch.zeros(1, height, width, dtype=torch.bool)
        masks[:, 10:70, 10:60] = True
        torch.manual_seed(0)
        losses.append(detector.loss(Batch(images, [Target(box, label, masks=masks)], sizes)))
    assert losses[0] == losses[1]


def test_a_published_file_loads_by_name(tmp_path):
    golden = DenseGolden("mask_rcnn_xcit_tiny_12_p16")
    path = tmp_path / "published.pth"
    torch.save({"meta": {"CLASSES": ("person", "car"), "epoch": 36}, "state_dict": golden.state}, path)
    detector = create_detector("xcit_tiny_12_p16", head="mask_rcnn", weights=path)
    got = detector.head.boxes[0].score.weight
    assert torch.equal(got, golden.state["roi_head.bbox_head.fc_cls.weight"])
    assert torch.equal(detector.pyramid.levels[1][0].weight, golden.state["backbone.fpn2.0.weight"])
    again = create_detector("xcit_tiny_12_p16", weights=detector.state_dict())
    assert torch.equal(again.head.boxes[0].score.weight, got)
    other = create_detector("xcit_tiny_12_p16", num_classes=3, weights=path)
    assert len(other.head.boxes[0].score.bias) == 4  # fresh
    assert torch.equal(other.head.boxes[0].layers[0].weight, detector.head.boxes[0].layers[0].weight)
    with pytest.raises(BadFile, match=r"does not fit"):
        create_detector("xcit_tiny_12_p16", head="retinanet", weights=path)


def test_a_detector_says_how_to_build_it_again():
    detector = create_detector(
        "xcit_nano_12_p16", head="retinanet", num_classes=3, head_options={"overlap": 0.6}
    )
    again = create_detector(detector.name, head=detector.head_name, num_classes=3, **detector.options)
    assert again.head.overlap == 0.6
    report = load_weights(again, detector.state_dict())
    assert report.matched == len(detector.state_dict())


@pytest.mark.parametrize("head", HEADS)
def test_a_detector_comes_back_from_its_file(head, tmp_path):
    detector = small(head)
    detector.class_names = tuple("abcde")
    save(detector, tmp_path / "detector.safetensors")
    again = load(tmp_path / "detector.safetensors")
    assert isinstance(again, Detector)
    assert (again.head_name, again.class_names, again.options) == (head, tuple("abcde"), detector.options)
    assert again.input == detector.input
    images, sizes = pictures((64, 96))
    for a, b in zip(detector.detect(images, sizes), again.detect(images, sizes), strict=True):
        assert len(a.boxes)
        assert torch.equal(a.boxes, b.boxes)
        assert torch.equal(a.scores, b.scores)


def test_another_kind_of_weights_is_refused(tmp_path):
    save(small("retinanet"), tmp_path / "detector.safetensors")
    with pytest.raises(ValueError) as error:
        create_detector("xcit_nano_12_p16", head="mask_rcnn", weights=tmp_path / "detector.safetensors")
    assert str(error.value) == (
        f"{tmp_path / 'detector.safetensors'} holds the head 'retinanet'; got head='mask_rcnn'."
    )
    with pytest.raises(ValueError) as error:
        create_detector("xcit_tiny_12_p16.coco_mask_rcnn", weights="file.pth")
    assert str(error.value) == (
        "Weights are named once: xcit_tiny_12_p16.coco_mask_rcnn, or weights=...; got both."
    )


def test_published_detectors_know_the_classes_of_coco(monkeypatch):
    golden = DenseGolden("mask_rcnn_xcit_tiny_12_p16")
    row = CHECKPOINTS["xcit_tiny_12_p16.coco_mask_rcnn"]
    monkeypatch.setattr(convert, "find", lambda *a, **k: convert.ResolvedWeights(golden.state, row))
    detector = create_detector("xcit_tiny_12_p16.coco_mask_rcnn")
    assert detector.head_name == "mask_rcnn"
    assert detector.class_names == class_names()
    assert detector.input == COCO_INPUT
    assert create_detector("xcit_tiny_12_p16.coco_mask_rcnn", num_classes=2).class_names == ()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: create_detector("xcit_nano_12_p16", head="mask_rccn"),
            "Unknown detection head 'mask_rccn'. Did you mean 'mask_rcnn'?",
        ),
        (
            lambda: create_detector("xcit_nano_12_p16", head="retinanet", head_options={"overlaps": 1}),
            "retinanet has no option 'overlaps'. Did you mean 'overlap'?",
        ),
        (
            lambda: create_detector("xcit_nano_12_p16", num_classes=0),
            "num_classes of a detector is 1 or more; got 0.",
        ),
        (
            lambda: small("retinanet").detect(torch.zeros(1, 3, 64, 64), masks="pasted"),
            "RetinaNet predicts no masks; heads that do: cascade, mask_rcnn.",
        ),
        (
            lambda: small("mask_rcnn").detect(torch.zeros(1, 3, 64, 64), masks="rle"),
            "masks takes one of none, pasted, probabilities; got 'rle'.",
        ),
        (
            lambda: small("retinanet").detect(torch.zeros(2, 3, 64, 64), [(64, 64)]),
            "image_sizes holds a height and a width in pixels for each of the 2 images; got [(64, 64)].",
        ),
        (
            lambda: small("retinanet").detect(torch.zeros(2, 3, 64, 64), torch.tensor([[64, 64], [0, 0]])),
            "image_sizes holds a height and a width in pixels for each of the 2 images; got [[64, 64], [0, 0]].",
        ),
        (
            lambda: small("retinanet").detect(torch.zeros(1, 3, 64, 64), [(64, 65)]),
            "image_sizes must lie within the batch's 64 x 64 pixels; got [[64, 65]].",
        ),
        (
            lambda: small("retinanet").detect(torch.zeros(1, 3, 64, 64), output_sizes=[(0, 9)]),
            "output_sizes holds a height and a width in pixels for each of the 1 images; got [(0, 9)].",
        ),
        (
            lambda: small("retinanet").loss(
                Batch(torch.zeros(1, 3, 64, 64), [target([[1, 1, 9, 9]], [5], (64, 64))], names=["a/b.jpg"])
            ),
            "labels are 0 to 4 for num_classes=5; got 5 in a/b.jpg.",
        ),
        (
            lambda: small("retinanet").loss(
                Batch(torch.zeros(1, 3, 64, 64), [target([[1, 1, 9, 9]], [-1], (64, 64))])
            ),
            "labels are 0 to 4 for num_classes=5; got -1 in image 0 of the batch.",
        ),
    ],
)
def test_what_is_refused(call, words):
    with pytest.raises(ValueError) as error:
        call()
    assert str(error.value) == words
