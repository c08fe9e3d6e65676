"""Weights of every origin end up in the model, or the model stays as it was and the tensors are named."""

import argparse
import collections
import re

import pytest
import timm
import torch
from authors import golden
from torch import nn

from tetravit.models import create_model, save
from tetravit.weights import LAYOUTS, fileformat
from tetravit.weights.fileformat import BadFile, Header
from tetravit.weights.read import Report, load_into, read_state, rename

NAME = "xcit_nano_12_p16"


def empty(name=NAME, **options):
    """A model without numbers: built in no time, filled by the loading."""
    with torch.device("meta"):
        return create_model(name, **options).eval()


@pytest.fixture(scope="module")
def official():
    return golden(NAME).state()


@pytest.fixture(scope="module")
def ours(official):
    model = empty()
    load_into(model, official)
    return model.state_dict()


def check(model, ours):
    state = model.state_dict()
    assert all(torch.equal(state[name], ours[name]) for name in ours)


def origins(official):
    """The same weights as each kind of program would have written them, and how they should be recognised."""
    namespace = argparse.Namespace(lr=0.1)
    timm_model = timm.create_model(f"{NAME}_224")
    timm_state = rename(LAYOUTS["xcit"]["official"].to_ours(official), "xcit", "timm")
    timm_model.load_state_dict(timm_state)
    other = {k: torch.zeros_like(v) for k, v in official.items()}
    prefixed = {f"module.{k}": v for k, v in official.items()}
    return {
        "flat": (official, "official", None),
        "authors' model": (
            {"model": official, "optimizer": {"state": {}}, "args": namespace},
            "official",
            "model",
        ),
        "DeiT trainer with an average": ({"model": official, "model_ema": other}, "official", "model"),
        "timm trainer": (
            {"state_dict": timm_state, "state_dict_ema": other, "args": namespace, "epoch": 3},
            "timm",
            "state_dict",
        ),
        "parallel": ({"state_dict": prefixed}, "official", "state_dict"),
        "parallel twice": ({f"module.{k}": v for k, v in prefixed.items()}, "official", None),
        "ours": (LAYOUTS["xcit"]["official"].to_ours(official), "ours", None),
    }


KINDS = [
    "flat",
    "authors' model",
    "DeiT trainer with an average",
    "timm trainer",
    "parallel",
    "parallel twice",
    "ours",
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_origin_is_recognised(tmp_path, official, ours, kind):
    saved, layout, entry = origins(official)[kind]
    torch.save(saved, tmp_path / "c.pth")
    model = empty()
    report = load_into(model, tmp_path / "c.pth")
    check(model, ours)
    assert (report.layout, report.entry) == (layout, entry)
    assert (report.matched, report.total) == (len(ours), len(ours))
    assert report.resized == report.dropped == report.missing == []


def test_an_average_is_taken_when_asked_for(tmp_path, official):
    zeros = {k: torch.zeros_like(v) for k, v in official.items()}
    torch.save({"model": official, "model_ema": zeros}, tmp_path / "c.pth")
    model = empty()
    report = load_into(model, tmp_path / "c.pth", entry="model_ema")
    assert model.head.weight.abs().sum() == 0
    assert report.others == ("model",)
    with pytest.raises(BadFile) as error:
        load_into(model, tmp_path / "c.pth", entry="teacher")
    assert str(error.value) == (
        f"{tmp_path / 'c.pth'} has no weights under 'teacher'; entries with weights: 'model', 'model_ema'."
    )


def test_a_full_dino_checkpoint_gives_its_teacher(tmp_path, official):
    body = {f"module.backbone.{k}": v for k, v in official.items() if not k.startswith("head.")}
    projection = {
        "module.head.mlp.0.weight": torch.ones(2, 2),
        "module.head.last_layer.weight_g": torch.ones(2, 1),
    }
    student = {k: torch.zeros_like(v) for k, v in body.items()}
    saved = {"student": {**student, **projection}, "teacher": {**body, **projection}, "epoch": 1}
    torch.save({**saved, "args": argparse.Namespace(arch="x")}, tmp_path / "c.pth")
    model = empty(num_classes=0)
    report = load_into(model, tmp_path / "c.pth")
    assert torch.equal(model.backbone.cls_token, official["cls_token"])
    assert report.entry == "teacher"
    head = ("module.head.mlp.0.weight", "module.head.last_layer.weight_g")
    assert report.dropped == [f"{name} (projection head)" for name in head]


def test_a_detector_gives_its_backbone(tmp_path, official):
    body = {f"backbone.{k}": v for k, v in official.items() if not k.startswith(("head.", "cls_", "norm."))}
    saved = {
        "meta": {"CLASSES": ["a"]},
        "state_dict": {**body, "neck.lateral_convs.0.conv.bias": torch.ones(3)},
    }
    torch.save(saved, tmp_path / "c.pth")
    model = empty()
    allow = ["neck.*", "head.*", "cls_token", "class_blocks.*", "norm.*"]
    report = load_into(model, tmp_path / "c.pth", allow=allow)
    assert report.dropped == ["backbone.neck.lateral_convs.0.conv.bias"]
    assert len(report.missing) == 2 + 1 + 2 + sum(
        k.startswith("backbone.class_blocks.") for k in model.state_dict()
    )


def test_our_own_file(tmp_path, ours):
    header = fileformat.save(tmp_path / "c.safetensors", ours, Header(NAME))
    model = empty()
    report = load_into(model, tmp_path / "c.safetensors")
    check(model, ours)
    assert report.fingerprint == header.fingerprint


@pytest.mark.slow
def test_the_fingerprint_does_not_depend_on_the_layout(official, ours):
    prints = set()
    for saved, _, _ in origins(official).values():
        prints.add(load_into(empty(), saved).fingerprint)
    assert len(prints) == 1


def test_a_timm_folder(tmp_path, ours):
    theirs = timm.create_model(f"{NAME}_224").eval()
    theirs.load_state_dict(rename(ours, "xcit", "timm"))
    folder = tmp_path / "hub"
    timm.models.save_for_hf(theirs, str(folder))
    model = empty().eval()
    report = load_into(model, folder)
    assert report.layout == "timm"
    check(model, ours)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert (model(images) - theirs(images)).abs().max() < 5e-5


@pytest.mark.parametrize("layout", ["official", "timm"])
def test_weights_go_back_to_every_layout(official, ours, layout):
    there = rename(ours, "xcit", layout)
    back = LAYOUTS["xcit"][layout].to_ours(there)
    assert back.keys() == ours.keys()
    assert all(torch.equal(back[name], ours[name]) for name in ours)
    if layout == "official":
        assert there.keys() == official.keys()
    with pytest.raises(ValueError) as error:
        rename(ours, "xcit", "tim")
    assert str(error.value) == "Unknown layout 'tim' of xcit. Did you mean 'timm'?"


def test_another_number_of_classes_gets_a_fresh_head(official):
    model = create_model(NAME, num_classes=10)
    before = model.head.weight.clone()
    report = load_into(model, official)
    assert torch.equal(model.head.weight, before)
    assert report.dropped == [f"head.{p} (1000 classes, the model has 10)" for p in ("weight", "bias")]
    assert report.missing == ["head.weight (fresh)", "head.bias (fresh)"]


def test_no_head_is_asked_for(official):
    report = load_into(empty(num_classes=0), official)
    assert report.dropped == ["head.weight (no head)", "head.bias (no head)"]


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_other_channels_keep_the_response_to_grey_images(official, channels):
    colour, model = empty().eval(), empty(in_chans=channels).eval()
    load_into(colour, official)
    report = load_into(model, official)
    assert report.resized == [f"backbone.patch_embed.0.0.weight 3 -> {channels} channels"]
    grey = torch.randn(1, 1, 64, 64)
    if channels in (1,):
        expected = colour(grey.expand(-1, 3, -1, -1))
        assert (model(grey) - expected).abs().max() < 1e-4
    first = model.backbone.patch_embed[0][0].weight
    old = colour.backbone.patch_embed[0][0].weight
    expected = (
        old.sum(1, keepdim=True) if channels == 1 else torch.cat([old] * 3, 1)[:, :channels] * 3 / channels
    )
    assert torch.allclose(first, expected)


def test_position_embeddings_follow_the_image_size():
    state = golden("convit_tiny").state()
    model = empty("convit_tiny", image_size=(96, 160))
    report = load_into(model, state)
    assert report.resized == ["backbone.pos_embed.table 1x196x192 -> 1x60x192"]
    table = state["pos_embed"].mT.unflatten(2, (14, 14))
    expected = nn.functional.interpolate(table, (6, 10), mode="bicubic").flatten(2).mT
    assert torch.allclose(model.backbone.pos_embed.table, expected, atol=1e-6)


@pytest.mark.parametrize("size", [(96, 160), (160, 96), 128])
def test_positions_of_a_rectangle_follow_the_image_too(tmp_path, size):
    wide = create_model("deit_tiny", depth=1, num_classes=0, image_size=(96, 160))
    save(wide, tmp_path / "wide.safetensors")
    model = create_model("deit_tiny", depth=1, num_classes=0, image_size=size)
    report = load_into(model, tmp_path / "wide.safetensors")
    assert len(report.resized) == (size != (96, 160))
    position = model.backbone.pos_embed
    with torch.no_grad():
        torch.testing.assert_close(position.table, wide.backbone.pos_embed(position.grid))


def test_bias_tables_follow_the_window():
    state = golden("gcvit_xxtiny").state()
    model = empty("gcvit_xxtiny", image_size=384)
    report = load_into(model, state)
    assert "backbone.levels.0.blocks.0.attn.bias.table 169x2 -> 529x2" in report.resized
    assert len(report.resized) == 12


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda s: s.pop("norm.weight"), "missing: 'backbone.norm.weight'."),
        (lambda s: s.update(extra=torch.ones(1)), "too many: 'backbone.extra'."),
        (
            lambda s: s.update({"norm.weight": torch.ones(3)}),
            "'backbone.norm.weight' is 3, the model's 128.",
        ),
    ],
)
def test_a_difference_is_an_error_until_it_is_allowed(official, change, text):
    state = dict(official)
    change(state)
    model = create_model(NAME)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(BadFile) as error:
        load_into(model, state)
    assert str(error.value) == f"the state dict does not fit (official): {text}"
    check(model, before)
    load_into(model, state, allow=["norm.weight", "extra"])
    assert torch.equal(model.backbone.cls_token, official["cls_token"])


def test_counters_may_be_missing(official, ours):
    state = {k: v for k, v in official.items() if not k.endswith("num_batches_tracked")}
    report = load_into(empty(), state)
    assert len(report.missing) == len(official) - len(state) > 0


def test_another_model_is_named(official):
    with pytest.raises(BadFile) as error:
        load_into(empty("twins_svt_small"), official)
    assert re.fullmatch(
        r"the state dict does not fit: at best \(\w+\) \d+ of the model's \d+ names are among its 383, "
        r"which begin with 'cls_token'\.",
        str(error.value),
    )
    with pytest.raises(BadFile, match=r"does not fit \(official\): .* the model's "):
        load_into(empty("xcit_tiny_12_p16"), official)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([torch.ones(1)], "holds no state dict but list."),
        ({"epoch": 3, "args": 1}, "holds no weights; its entries are 'epoch', 'args'."),
        ({"model": {"a": torch.ones(1), "b": 3}}, "'b' is no tensor but int."),
    ],
)
def test_files_without_weights_are_named(tmp_path, value, text):
    torch.save(value, tmp_path / "c.pth")
    with pytest.raises(BadFile, match=re.escape(text)):
        read_state(tmp_path / "c.pth")


def test_folders_without_weights_are_named(tmp_path):
    with pytest.raises(BadFile) as error:
        read_state(tmp_path)
    assert (
        str(error.value)
        == f"{tmp_path} holds no weights; a folder has model.safetensors or pytorch_model.bin."
    )


def test_an_unknown_layout_is_named(official):
    with pytest.raises(ValueError) as error:
        load_into(empty(), official, layout="oficial")
    assert str(error.value) == "Unknown layout 'oficial'. Did you mean 'official'?"


def test_a_model_on_meta_gets_the_tensors(official, ours):
    model = empty()
    load_into(model, official)
    check(model, ours)
    assert not any(t.is_meta for t in model.state_dict().values())
    assert all(p.requires_grad for p in model.parameters())


def test_the_report_has_five_lines():
    report = Report("x.pth", "official", "model", 5, 9, 3, "ab" * 32, ("model_ema",), dropped=list("abcdef"))
    assert str(report) == (
        "matched  5 of 9 tensors, 3 renamed; layout official, entry 'model' (model_ema beside it)\n"
        "resized  none\n"
        "dropped  a, b, c, d and 2 more\n"
        "missing  none\n"
        f"hash     sha256 {'ab' * 32}"
    )


def test_ordered_dicts_and_parameters_are_read(tmp_path, official, ours):
    model = empty()
    state = collections.OrderedDict(
        (k, nn.Parameter(v) if v.is_floating_point() else v) for k, v in official.items()
    )
    torch.save(state, tmp_path / "c.bin", _use_new_zipfile_serialization=False)
    load_into(model, tmp_path / "c.bin")
    check(model, ours)
