"""torchvision detectors and segmentation_models_pytorch on these backbones; detections in the formats of others."""

import json

import numpy as np
import pytest
import torch

import tetravit
from tetravit.rle import decode_rle
from tetravit.structures import Detections

TINY = {"depths": (1, 1, 1, 1)}


def detections(masks=False):
    mask = torch.zeros(2, 20, 30, dtype=torch.bool)
    mask[0, 2:6, 3:9] = True
    return Detections(
        torch.tensor([[3.0, 2.0, 9.0, 6.0], [0.0, 0.0, 30.0, 20.0]]),
        torch.tensor([0.9, 0.25]),
        torch.tensor([1, 0]),
        mask if masks else None,
    )


def test_a_pyramid_is_an_ordered_dict_with_out_channels():
    backbone = tetravit.create_backbone("twins_svt_small", **TINY).eval()
    images = torch.randn(1, 3, 64, 96)
    plain = backbone.as_pyramid(None)
    assert list(plain(images)) == ["0", "1", "2", "3"]
    assert plain.out_channels == [64, 128, 256, 512]
    assert torch.equal(plain(images)["2"], backbone(images)[2])
    pyramid = backbone.as_pyramid(32)
    assert pyramid.out_channels == 32
    shapes = {name: tuple(level.shape) for name, level in pyramid(images).items()}
    assert shapes == {
        "0": (1, 32, 16, 24), "1": (1, 32, 8, 12), "2": (1, 32, 4, 6), "3": (1, 32, 2, 3), "pool": (1, 32, 1, 2),
    }  # fmt: skip


def test_torchvisions_faster_rcnn_trains_and_detects():
    from torchvision.models.detection import FasterRCNN

    backbone = tetravit.create_backbone("twins_svt_small", **TINY)
    model = FasterRCNN(backbone.as_pyramid(16), num_classes=3, min_size=64, max_size=96)
    target = {"boxes": torch.tensor([[8.0, 8.0, 40.0, 40.0]]), "labels": torch.tensor([1])}
    losses = model([torch.rand(3, 64, 96)], [target])
    sum(losses.values()).backward()
    assert backbone.backbone.patch_embeds[0].proj.weight.grad.abs().sum() > 0
    (found,) = model.eval()([torch.rand(3, 64, 96)])
    assert found["boxes"].shape[1] == 4


@pytest.mark.slow
def test_an_unet_of_segmentation_models_pytorch():
    smp = pytest.importorskip("segmentation_models_pytorch")
    import tetravit.bridges.segmentation_models as bridge

    unet = smp.Unet("tetravit_twins_svt_small", encoder_weights=None, classes=4, in_channels=1)
    assert unet(torch.randn(2, 1, 64, 96)).shape == (2, 4, 64, 96)
    fpn = smp.FPN("tetravit_xcit_nano_12_p16", encoder_weights=None, classes=4)
    fpn(torch.randn(2, 3, 64, 64)).mean().backward()
    assert fpn.encoder.body.backbone.cls_token is not None
    ours = tetravit.create_model("twins_svt_small", **TINY)
    encoder = bridge.Encoder("twins_svt_small", **TINY).load(ours.state_dict())
    loaded = encoder.body.backbone.state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in ours.backbone.state_dict().items())
    with pytest.raises(
        ValueError, match=r"^encoder_depth is 3, 4 or 5 for tetravit_twins_svt_small; got 2.$"
    ):
        bridge.Encoder("twins_svt_small", depth=2)


def test_detections_as_coco_results():
    rows = detections(masks=True).to_coco(7)
    assert json.loads(json.dumps(rows)) == rows
    assert [(row["image_id"], row["category_id"], row["bbox"]) for row in rows] == [
        (7, 2, [3.0, 2.0, 6.0, 4.0]),
        (7, 1, [0.0, 0.0, 30.0, 20.0]),
    ]
    assert rows[0]["segmentation"]["size"] == [20, 30]
    assert decode_rle(rows[0]["segmentation"]["counts"].encode())[1::2].sum() == 24
    assert [row["category_id"] for row in detections().to_coco(1, [10, 44])] == [44, 10]
    assert "segmentation" not in detections().to_coco(1)[0]


def test_detections_as_a_labelme_file():
    table = detections().to_labelme("a.jpg", (20, 30), ("cat", "dog"))
    assert (table["imagePath"], table["imageHeight"], table["imageWidth"]) == ("a.jpg", 20, 30)
    first = table["shapes"][0]
    assert (first["label"], first["points"], first["shape_type"]) == (
        "dog",
        [[3.0, 2.0], [9.0, 6.0]],
        "rectangle",
    )


def test_detections_as_supervision(monkeypatch):
    supervision = pytest.importorskip("supervision")
    found = detections(masks=True).to_supervision(("cat", "dog"))
    assert isinstance(found, supervision.Detections)
    assert found.data["class_name"].tolist() == ["dog", "cat"]
    assert np.array_equal(found.mask[0].nonzero()[0][[0, -1]], [2, 5])


def test_without_supervision_the_message_names_it(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(
        ValueError, match=r"^to_supervision needs the package supervision: pip install supervision.$"
    ):
        detections().to_supervision()
