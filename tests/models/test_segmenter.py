"""Segmenters of every backbone: shapes, losses, label maps, files, errors, export."""

import pytest
import torch
from dense.answers import units
from torch import nn
from torch.nn import functional as F

from tetravit.heads.parts import pixels
from tetravit.heads.parts.conv import pool_to
from tetravit.heads.upernet import UPerNet
from tetravit.models import create_segmenter
from tetravit.weights.layouts import dense_map
from tetravit.weights.read import BadFile

pytestmark = pytest.mark.slow  # whole detectors and segmentors

SMALL = {"width": 32}


def tiny(head="upernet", **options):
    return create_segmenter("xcit_nano_12_p16", head=head, num_classes=5, head_options=SMALL, **options)


@pytest.mark.parametrize("head", ["semantic_fpn", "upernet"])
@pytest.mark.parametrize(
    "name",
    ["xcit_nano_12_p8", "convit_tiny", "deit_tiny", "gcvit_xxtiny", "twins_pcpvt_small", "twins_svt_small"],
)
def test_every_family_gives_logits_at_the_grid_of_the_finest_map(name, head):
    model = create_segmenter(name, head=head, num_classes=7, head_options=SMALL).eval()
    images = torch.randn(1, 3, 64, 70)
    with torch.no_grad():
        logits = model(images)
        finest = model.feature_maps(images)[0]
        (labels,) = model.segment(images, [(33, 50)])
    assert logits.shape == (1, 7, *finest.shape[2:])
    assert labels.shape == (33, 50)
    assert labels.dtype == torch.int64


@pytest.mark.parametrize(
    ("name", "head", "width"),
    [
        ("xcit_small_12_p16", "semantic_fpn", 384),
        ("xcit_medium_24_p8", "semantic_fpn", 512),
        ("twins_svt_large", "semantic_fpn", 256),
        ("gcvit_tiny", "semantic_fpn", 256),
    ],
)
def test_the_pyramid_is_as_wide_as_published(name, head, width):
    with torch.device("meta"):
        model = create_segmenter(name, head=head)
    assert model.head.neck.layer_blocks[0][0].out_channels == width


@pytest.mark.parametrize(
    ("name", "head", "millions"),
    [
        ("xcit_small_12_p16", "upernet", 52.4),
        ("xcit_small_24_p16", "upernet", 73.8),
        ("xcit_small_12_p8", "semantic_fpn", 30.4),
        ("twins_pcpvt_small", "upernet", 54.6),
        ("twins_svt_small", "upernet", 54.4),
        ("twins_svt_small", "semantic_fpn", 28.3),
    ],
)
def test_sizes_are_those_of_the_papers(name, head, millions):
    """XCiT's are counted without the adapter, those of Twins with the classifier that their files still hold."""
    with torch.device("meta"):
        model = create_segmenter(name, head=head, head_options={"auxiliary": 0.4 * (head == "upernet")})
    unused = ("backbone.cls_token", "backbone.class_blocks.", "backbone.norm.", "pyramid.")
    count = sum(p.numel() for k, p in model.named_parameters() if not k.startswith(unused))
    classifier = 1002 * 512 + 1000 if name.startswith("twins") else 0
    assert (count + classifier) / 1e6 == pytest.approx(millions, abs=0.06)


def test_the_segmentation_release_masks_windows():
    model = create_segmenter("twins_svt_small", head_options=SMALL)
    assert model.backbone.blocks[0][0].attn.window_mask == "segmentation"
    model = create_segmenter("gcvit_xxtiny", head_options=SMALL)
    assert model.backbone.levels[0].blocks[0].attn.bias.window_size == 24


def test_an_auxiliary_head_only_where_its_loss_is_asked_for():
    images, labels = torch.randn(2, 3, 64, 64), torch.randint(0, 5, (2, 64, 64))
    assert set(tiny().loss(images, labels)) == {"loss_class"}
    model = create_segmenter(
        "xcit_nano_12_p16", num_classes=5, head_options={**SMALL, "auxiliary": 0.4}
    ).eval()
    losses = model.loss(images, labels)
    maps = model.feature_maps(images)
    assert maps[2].shape[2:] == (4, 4)
    auxiliary = F.interpolate(model.head.auxiliary(maps[2]), (64, 64), mode="bilinear")
    assert losses["loss_auxiliary"].item() == pytest.approx(0.4 * F.cross_entropy(auxiliary, labels).item())
    sum(losses.values()).backward()
    assert model.head.auxiliary.score.weight.grad.abs().sum() > 0
    assert model(images).shape == (2, 5, 16, 16)


@pytest.mark.parametrize(("average", "pixels"), [("all", 64 * 64), ("valid", 64 * 60)])
def test_the_mean_over_all_pixels_or_those_with_a_class(average, pixels):
    head = UPerNet((4, 4, 4, 4), (4, 8, 16, 32), num_classes=5, width=8, average=average)
    logits, labels = torch.randn(1, 5, 64, 64), torch.randint(0, 5, (1, 64, 64))
    labels[:, 60:] = 255
    total = F.cross_entropy(logits, labels, ignore_index=255, reduction="sum")
    assert head.loss(logits, labels)["loss_class"].item() == pytest.approx(total.item() / pixels)
    labels[:] = 255
    assert head.loss(logits, labels.to(torch.uint8))["loss_class"].item() == 0


def test_label_maps_made_in_bands_are_the_same(monkeypatch):
    logits = torch.randn(1, 5, 18, 23)
    image_size, sizes = (64, 85), [(131, 90)]
    head = tiny().head
    (want,) = head.decode(logits, sizes, image_size)
    assert torch.equal(want, pixels.to_picture(logits, image_size, sizes[0]).softmax(dim=1).argmax(dim=1)[0])
    monkeypatch.setattr(pixels, "BAND", 5 * 90 * 7)
    (got,) = head.decode(logits, sizes, image_size)
    assert (got != want).sum() <= 1
    (smaller,) = head.decode(logits, [(20, 31)], image_size)
    assert (smaller != pixels.to_picture(logits, image_size, (20, 31)).argmax(dim=1)[0]).sum() <= 1


@pytest.mark.parametrize("size", [(7, 11), (16, 22), (6, 1), (1, 2)])
@pytest.mark.parametrize("bins", [1, 2, 3, 6])
def test_pooling_in_graphs_is_adaptive_pooling(size, bins, monkeypatch):
    x = torch.randn(2, 3, *size)
    want = F.adaptive_avg_pool2d(x, bins)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    monkeypatch.setattr(F, "adaptive_avg_pool2d", None)
    torch.testing.assert_close(pool_to(x, bins), want)


def theirs(model, head):
    return dense_map("xcit", head).to_theirs(model.state_dict())


def test_a_published_file_brings_its_classes_and_its_auxiliary_head(tmp_path):
    head_options = {**SMALL, "auxiliary": 0.4}
    model = create_segmenter("xcit_nano_12_p16", num_classes=9, head_options=head_options).eval()
    file = tmp_path / "upernet.pth"
    state = theirs(model, "upernet")
    assert "auxiliary_head.convs.0.conv.weight" in state
    torch.save({"meta": {"CLASSES": ("a", "b")}, "state_dict": state, "optimizer": {"state": {0: 1}}}, file)
    again = create_segmenter("xcit_nano_12_p16", weights=file, head_options=SMALL).eval()
    assert again.num_classes == 9
    assert again.report.layout == "mmseg"
    images = torch.randn(1, 3, 48, 64)
    with torch.no_grad():
        assert torch.equal(again(images), model(images))
        maps = again.feature_maps(images)
        assert torch.equal(again.head.auxiliary_logits(maps), model.head.auxiliary_logits(maps))


@pytest.mark.parametrize("layout", ["ours", "mmseg"])
def test_an_auxiliary_head_of_the_weights_is_left_out_where_it_is_refused(layout, capsys):
    head_options = {**SMALL, "auxiliary": 0.4}
    model = create_segmenter("xcit_nano_12_p16", num_classes=5, head_options=head_options).eval()
    state = model.state_dict() if layout == "ours" else theirs(model, "upernet")
    again = create_segmenter("xcit_nano_12_p16", weights=state, head_options={**SMALL, "auxiliary": 0}).eval()
    left_out = {name for name in model.state_dict() if name.startswith("head.auxiliary.")}
    assert again.head.auxiliary is None
    assert again.report.layout == layout
    assert left_out <= set(again.report.dropped)
    assert not any(name.startswith("head.") for name in again.report.missing)
    assert "dropped  head.auxiliary.conv" in capsys.readouterr().err
    images = torch.randn(1, 3, 48, 64)
    with torch.no_grad():
        assert torch.equal(again(images), model(images))


def test_published_files_of_150_classes_know_their_names():
    model = create_segmenter("xcit_nano_12_p16", num_classes=150, head_options=SMALL)
    assert model.class_names == ()
    again = create_segmenter("xcit_nano_12_p16", weights=theirs(model, "upernet"), head_options=SMALL)
    assert (again.class_names[0], again.class_names[149]) == ("wall", "flag")
    other = create_segmenter(
        "xcit_nano_12_p16", weights=theirs(model, "upernet"), head_options=SMALL, num_classes=3
    )
    assert other.class_names == ()


def test_other_classes_get_fresh_scores(capsys):
    model = tiny("semantic_fpn")
    other = create_segmenter(
        "xcit_nano_12_p16",
        head="semantic_fpn",
        num_classes=3,
        weights=theirs(model, "semantic_fpn"),
        head_options=SMALL,
    )
    assert other.head.score.weight.shape[0] == 3
    assert torch.equal(other.head.levels[0][0].conv.weight, model.head.levels[0][0].conv.weight)
    assert {"head.score.weight", "head.score.bias"} <= set(other.report.missing)
    assert {"head.score.weight", "head.score.bias"} <= set(other.report.dropped)
    assert "head.score.weight" in capsys.readouterr().err


def test_our_own_names_load_for_families_without_published_segmenters():
    model = create_segmenter("deit_tiny", num_classes=5, head_options=SMALL)
    again = create_segmenter("deit_tiny", weights=model.state_dict(), head_options=SMALL)
    assert again.report.layout == "ours"
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True)
    )


def test_options_build_the_same_model_again():
    model = tiny("semantic_fpn", drop_path=0.1)
    again = create_segmenter(model.name, head=model.head_name, num_classes=model.num_classes, **model.options)
    assert {k: v.shape for k, v in again.state_dict().items()} == {
        k: v.shape for k, v in model.state_dict().items()
    }


@pytest.mark.parametrize(("average", "key"), [("all", "seg_ce"), ("valid", "seg_ce_torch")])
def test_cross_entropy_is_the_published_one(average, key):
    known = units()
    logits, labels = known["seg_ce_x"], known["seg_ce_t"]
    head = UPerNet((4, 4, 4, 4), (4, 8, 16, 32), num_classes=logits.shape[1], width=8, average=average)
    torch.testing.assert_close(head.loss(logits, labels)["loss_class"], known[key], atol=0, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"head": "upper_net"}, "Unknown segmentation head 'upper_net'. Did you mean 'upernet'?"),
        ({"head": "mask_rcnn"}, "Unknown segmentation head 'mask_rcnn'. Known: semantic_fpn, upernet."),
        ({"num_classes": 0}, "num_classes of a segmenter is 1 to 255; got 0."),
        ({"num_classes": 256}, "num_classes of a segmenter is 1 to 255; got 256."),
        ({"head_options": {"average": "mean"}}, "average is one of all, valid; got 'mean'."),
        ({"head_options": {"auxiliary": -1}}, "auxiliary is a weight of 0 (none) or more; got -1."),
    ],
)
def test_wrong_arguments(arguments, text):
    with pytest.raises(ValueError) as error:
        create_segmenter("xcit_nano_12_p16", **arguments)
    assert str(error.value) == text


def test_weights_named_twice():
    with pytest.raises(ValueError) as error:
        create_segmenter("xcit_tiny_12_p16.ade20k_upernet", weights="file.pth")
    assert (
        str(error.value)
        == "Weights are named once: xcit_tiny_12_p16.ade20k_upernet, or weights=...; got both."
    )


def test_weights_of_another_head():
    with pytest.raises(
        BadFile, match=r"^the state dict does not fit \(mmseg\): missing: 'head.pools.0.conv.weight',"
    ):
        create_segmenter("xcit_nano_12_p16", weights=theirs(tiny("semantic_fpn"), "semantic_fpn"))


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        (torch.zeros(1, 64, 60).long(), "labels must be integers (1, 64, 64); got torch.int64 (1, 64, 60)."),
        (torch.zeros(1, 64, 64), "labels must be integers (1, 64, 64); got torch.float32 (1, 64, 64)."),
        (
            torch.full((1, 64, 64), 255).index_fill(2, torch.tensor([3]), 5),
            "labels are 0 to 4 for num_classes=5, or 255 for none; got 5 among 64 wrong pixels of the batch.",
        ),
        (
            torch.zeros(1, 64, 64).long() - 1,
            "labels are 0 to 4 for num_classes=5, or 255 for none; got -1 among 4096 wrong pixels of the batch.",
        ),
    ],
)
def test_wrong_labels(labels, text):
    with pytest.raises(ValueError) as error:
        tiny("semantic_fpn").loss(torch.randn(1, 3, 64, 64), labels)
    assert str(error.value) == text


def test_wrong_sizes():
    with pytest.raises(ValueError) as error:
        tiny("semantic_fpn").segment(torch.randn(1, 3, 64, 64), [(3, 4), (5, 6)])
    assert str(error.value) == (
        "sizes holds a height and a width in pixels for each of the 1 images; got [(3, 4), (5, 6)]."
    )


def test_narrow_images_are_enlarged_to_what_a_backbone_takes():
    model, images = tiny().eval(), torch.randn(1, 3, 2, 70)
    (got,) = model.segment(images, [(1, 35)])
    wide = F.interpolate(images, (32, 70), mode="bilinear")
    assert torch.equal(got, model.segment(wide, [(1, 35)])[0])
    with torch.no_grad():
        shares = model.probabilities(images)
    assert shares.shape == (1, 5, 2, 70)


@pytest.mark.slow
@pytest.mark.parametrize("head", ["semantic_fpn", "upernet"])
def test_a_graph_takes_any_batch_height_and_width(head):
    model = tiny(head).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean)
    dim = torch.export.Dim
    shapes = (
        {
            0: dim("batch", min=1, max=8),
            2: dim("height", min=64, max=1024),
            3: dim("width", min=64, max=1024),
        },
    )
    program = torch.export.export(model, (torch.randn(2, 3, 96, 128),), dynamic_shapes=shapes)
    for size in [(1, 3, 64, 64), (3, 3, 101, 150), (2, 3, 224, 95)]:
        images = torch.randn(size)
        with torch.no_grad():
            torch.testing.assert_close(program.module()(images), model(images), atol=1e-4, rtol=0)
