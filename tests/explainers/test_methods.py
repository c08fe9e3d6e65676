"""The methods have their exact values where these are known, and refuse where they have no meaning."""

import math

import pytest
import torch
from torch.nn import functional as F

from tetravit.explainers import EXPLAIN, methods_of
from tetravit.explainers.base import Request
from tetravit.explainers.parts.attention import distances, half_residual, uniform_non_locality
from tetravit.explainers.parts.explanation import explain, plain_model
from tetravit.models import create_model

SMALL = {
    "xcit_nano_12_p16": {"depth": 2},
    "convit_tiny": {"depth": 3, "num_gpsa": 2, "image_size": 64},
    "deit_tiny": {"depth": 2, "image_size": 64},
    "gcvit_xxtiny": {"depths": (2, 2, 2, 2), "image_size": 64, "dim": 16, "num_heads": (1, 1, 2, 2)},
    "twins_svt_small": {"dims": (16, 16, 32, 32), "depths": (2, 2, 2, 2), "num_heads": (1, 1, 2, 2)},
}


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    made = {name: create_model(name, num_classes=4, **options).eval() for name, options in SMALL.items()}
    with torch.no_grad():
        for model in made.values():
            for p in model.parameters():
                p.mul_(2).add_(0.02 * torch.randn_like(p))
    return made


def run(model, method, images, **options):
    given = {key: options.pop(key) for key in ("layer", "query", "class_") if key in options}
    return EXPLAIN[method].run(model, images, Request(**given, options=options))


@pytest.mark.parametrize("name", ["gcvit_xxtiny", "twins_svt_small"])
@pytest.mark.parametrize("size", [(64, 64), (75, 100)], ids=str)
def test_grad_cam_sums_to_the_logit_minus_its_bias(models, name, size):
    """Heads on the mean of the patches: Grad-CAM before its ReLU is the class activation map (Zhou et al. 2016)."""
    model, images = models[name], torch.randn(1, 3, *size)
    for class_ in range(4):
        (one,) = run(model, "gradcam", images, class_=class_)
        with torch.no_grad():
            expected = model(images)[0, class_] - model.head.bias[class_]
        assert one.details["sum_before_relu"] == pytest.approx(float(expected), abs=1e-5)
        assert one.grid == model.backbone.grid(*size)


@pytest.mark.parametrize("name", SMALL)
def test_a_token_s_gradient_lies_where_its_record_says(models, name):
    """The centre of |gradient|^2 of one token's first features is the pixel that stride and centre give."""
    backbone = models[name].backbone
    stem = {"xcit": "patch_embed", "gcvit": "patch_embed", "twins": "patch_embeds.0", "convit": "patch_embed"}
    module = backbone.get_submodule(stem.get(name.partition("_")[0], "patch_embed"))
    stride = 4 if name.startswith(("gcvit", "twins")) else 16
    images = torch.randn(1, 3, 96, 128, requires_grad=True)
    x = module(images if not name.startswith("twins") else images.permute(0, 2, 3, 1))
    x = x if name.startswith(("gcvit", "twins")) else x.permute(0, 2, 3, 1)  # (1, H, W, C)
    row, column = x.shape[1] // 2, x.shape[2] // 2 - 1
    total = 0.0
    for i in range(min(x.shape[3], 16)):
        (gradient,) = torch.autograd.grad(x[0, row, column, i], images, retain_graph=True)
        total = total + gradient.square().sum(dim=(0, 1))
    places = [torch.arange(side, dtype=torch.float32) for side in total.shape]
    found = [float((total.sum(dim=1 - axis) * places[axis]).sum() / total.sum()) for axis in (0, 1)]
    centre = backbone.centre(stride)
    expected = [stride * row + centre, stride * column + centre]
    assert found == pytest.approx(expected, abs=0.12 * stride)
    assert (
        abs(found[0] - expected[0]) < abs(found[0] - (expected[0] + (stride - 1) / 2 - 2 * centre)) + stride
    )


def test_class_attention_of_convit_is_the_row_of_its_last_layer(models):
    model, images = models["convit_tiny"], torch.randn(1, 3, 64, 64)
    (one,) = run(model, "class-attention", images)
    record = model.backbone.attention(images, kinds=["self"])[-1]
    torch.testing.assert_close(one.values, record.class_row()[0].detach())
    torch.testing.assert_close(one.seen, one.values.sum(dim=(1, 2)))


def test_leverage_sums_to_one_and_output_is_what_the_layer_adds(models):
    model, images = models["xcit_nano_12_p16"], torch.randn(1, 3, 64, 96)
    for of in ("queries", "keys"):
        (one,) = run(model, "leverage", images, of=of)
        assert one.values.shape == (4, 4, 6)
        torch.testing.assert_close(one.values.sum(dim=(1, 2)), torch.ones(4))
    attn, x = model.backbone.blocks[0].attn, torch.randn(1, 24, 128)
    heads = attn.attend(x).unflatten(2, (4, -1))
    expected = [
        F.linear(heads[:, :, i], attn.proj.weight[:, 32 * i : 32 * i + 32]).norm(dim=-1) for i in range(4)
    ]
    torch.testing.assert_close(attn.written(x), torch.stack(expected, dim=1))


def test_cross_covariance_is_the_softmax_of_its_cosines(models):
    attn, x = models["xcit_nano_12_p16"].backbone.blocks[0].attn, torch.randn(2, 24, 128)
    scores = attn.cosines(x) * attn.temperature
    torch.testing.assert_close(attn.attention(x), scores.softmax(dim=-1))
    (one,) = run(models["xcit_nano_12_p16"], "cross-covariance", torch.randn(1, 3, 64, 64))
    assert all(0 < e <= 1 for e in one.details["entropy"])
    assert all(0 < s <= 1.0001 for s in one.details["largest_cosine"])


def test_gates_and_centres_come_from_weights_alone():
    model = create_model("convit_small", num_classes=2, depth=3, num_gpsa=2)
    (gates,) = run(model, "gates", None)
    assert gates.values.tolist() == [[pytest.approx(0.7310586)] * 9] * 2
    tables = {one.kind: one.values for one in run(model, "head-centres", None)}
    across, down = tables["centre, columns to the right"][0], tables["centre, rows down"][0]
    assert {(x, y) for x, y in zip(across.tolist(), down.tolist(), strict=True)} == {
        (x, y) for x in (-1.0, 0.0, 1.0) for y in (-1.0, 0.0, 1.0)
    }
    assert tables["locality strength"].tolist() == [[1.0] * 9] * 2
    torch.testing.assert_close(tables["span: standard deviation"], torch.full((2, 9), math.sqrt(0.5)))
    with torch.no_grad():
        model.backbone.blocks[0].attn.pos_proj.weight[0, 2] = 1.0  # attends the more the farther
    none = {one.kind: one for one in run(model, "head-centres", None)}["distance of the centre"]
    assert none.to_dict()["values"][0][0] is None


def test_both_forms_of_non_locality_differ_and_legacy_is_the_authors(models):
    model, images = models["convit_tiny"], torch.randn(2, 3, 64, 64)
    corrected, legacy = run(model, "non-locality", images)
    assert (corrected.values - legacy.values).abs().max() > 0.01
    assert corrected.details["uniform"] == pytest.approx(uniform_non_locality((4, 4)))
    assert len(corrected.details["mass_on_class_token"]) == 3
    assert corrected.details["mass_on_class_token"][0] == pytest.approx(0, abs=1e-5)
    # The two lines of the authors' code: the embedding without positions and norms, for every layer.
    backbone = model.backbone
    x = backbone.patch_embed(images).flatten(2).transpose(1, 2)
    between, rows = distances((4, 4)), []
    for block in backbone.blocks:
        if hasattr(block.attn, "pos_proj"):
            q, k = block.attn.qk(x).reshape(2, 16, 2, 4, 48).permute(2, 0, 3, 1, 4)
            content = (q @ k.transpose(-2, -1) * 48**-0.5).softmax(-1)
            place = torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0))
            d = place[None] - place[:, None]
            offsets = torch.stack((d[..., 1], d[..., 0], d.square().sum(-1)), -1)
            position = block.attn.pos_proj(offsets).permute(2, 0, 1).softmax(-1)
            g = torch.sigmoid(block.attn.gating_param).view(1, -1, 1, 1)
            a = (1 - g) * content + g * position
            a = a / a.sum(-1, keepdim=True)
        else:
            q, k, _ = block.attn.qkv(x).reshape(2, 16, 3, 4, 48).permute(2, 0, 3, 1, 4)
            a = (q @ k.transpose(-2, -1) * 48**-0.5).softmax(-1)
        rows.append(torch.einsum("nm,hnm->h", (between, a.mean(0))) / 16)
    torch.testing.assert_close(legacy.values, torch.stack(rows).detach(), atol=1e-5, rtol=1e-5)


def test_rollout_equals_the_full_product(models):
    for name in ("convit_tiny", "deit_tiny"):
        model, images = models[name], torch.randn(1, 3, 64, 64)
        (one,) = run(model, "rollout", images)
        backbone = model.backbone
        kinds = [k for k in ("gated", "self") if k in backbone.attention_kinds]
        product = torch.eye(17)
        for record in backbone.attention(images, kinds=kinds):
            weights = half_residual(record.values, "mean", 0.0)[0]
            if not record.prefix:
                weights = torch.block_diag(torch.eye(1), weights)
            product = weights @ product
        torch.testing.assert_close(one.values, product[0, 1:].view(4, 4).detach())


def test_windows_sum_to_what_is_seen(models):
    images = torch.randn(1, 3, 75, 100)
    for name in ("gcvit_xxtiny", "twins_svt_small"):
        for one in run(models[name], "local-attention", images, layer="all", query=(99, 74)):
            torch.testing.assert_close(one.values.sum(dim=(1, 2)), one.seen)
    (tiles,) = run(models["twins_svt_small"], "global-subsampled-attention", images, layer="blocks.0.1")
    torch.testing.assert_close(tiles.values.sum(dim=(1, 2)), torch.ones(1))
    assert (tiles.stride, tiles.centre, tiles.grid) == (32, 15.5, (2, 3))


def test_across_windows_is_one_softmax_and_equals_the_network_where_there_is_one_window(models):
    model = models["gcvit_xxtiny"]
    for size, windows in ((64, 1), (75, 4)):
        images = torch.randn(1, 3, size, size)
        (one,) = run(model, "global-query-attention", images, across_windows=True)
        torch.testing.assert_close(one.values.sum(dim=(1, 2)), torch.ones(2))
        assert one.details["windows"][0] ** 2 == windows
        if windows == 1:
            (plain,) = run(model, "global-query-attention", images)
            torch.testing.assert_close(one.values, plain.values)


def test_explicit_attention_leaves_the_logits_as_they_are(models):
    from tetravit.explainers.parts.gradients import explicit_attention

    images = torch.randn(1, 3, 64, 64)
    for name, layers in (
        ("xcit_nano_12_p16", ["class_blocks.0.attn", "class_blocks.1.attn"]),
        ("convit_tiny", ["blocks.2.attn"]),
        ("deit_tiny", ["blocks.1.attn"]),
    ):
        model = models[name]
        with torch.no_grad(), explicit_attention(model.backbone, layers) as weights:
            explicit = model(images)
        with torch.no_grad():
            torch.testing.assert_close(explicit, model(images), atol=1e-4, rtol=1e-4)
        assert sorted(weights) == layers
        (one,) = run(model, "attention-gradient", images)
        assert (one.values >= 0).all()
        assert one.values.sum() > 0


def test_occlusion_finds_the_place_that_matters():
    """A model whose logit is the brightness of one corner drops where that corner is hidden."""

    def corner(images):
        value = images[:, :, :16, :16].mean(dim=(1, 2, 3))
        return torch.stack((value, -value), dim=1)

    model = create_model("xcit_nano_12_p16", num_classes=2, depth=1).eval()
    model.forward = corner
    (one,) = run(model, "occlusion", torch.ones(1, 3, 64, 64), class_=0, square=16)
    assert one.grid == (8, 8)
    assert one.values.flatten().argmax() == 0
    assert one.values[0, 0] == pytest.approx(1.0)
    assert one.values[4:, 4:].abs().max() == 0
    assert one.signed


def test_score_cam_announces_its_passes(models):
    lines = []
    request = Request(options={"channels": 3}, announce=lines.append)
    (one,) = EXPLAIN["scorecam"].run(models["deit_tiny"], torch.randn(1, 3, 64, 64), request)
    assert lines == ["scorecam: 3 passes of the model for blocks.1.norm1."]
    assert one.details["channels"] == 3


def test_an_optimised_model_is_explained_by_its_plain_one(models):
    model = create_model("xcit_nano_12_p16", num_classes=4, depth=1).eval()
    expected = explain(model, torch.rand(3, 64, 64), "gradcam", class_=1)
    model.forward = lambda images: 1 / 0
    plain, notes = plain_model(model)
    assert notes == [
        "An optimised model has no gradients and forms no attention maps: the plain model is used."
    ]
    assert "forward" in model.__dict__
    assert "forward" not in plain.__dict__
    assert expected.method == "gradcam"


REFUSALS = {
    ("xcit_nano_12_p16", "rollout"): (
        "given its weights, attention between channels maps each token alone, so it mixes no tokens"
    ),
    ("gcvit_xxtiny", "rollout"): (
        "tokens attend within windows alone, so no product of weights follows a token through the image"
    ),
    ("twins_svt_small", "rollout"): (
        "tokens attend to a summary made by convolutions, so no product of weights follows a token"
    ),
    ("gcvit_xxtiny", "class-attention"): "it has no class token",
    ("deit_tiny", "gates"): "it has no gated positional attention",
    ("convit_tiny", "leverage"): "it has no attention between channels",
    ("convit_tiny", "local-attention"): "it has no attention within windows",
    ("twins_svt_small", "global-query-attention"): "it has no global queries",
    ("xcit_nano_12_p16", "non-locality"): "its patches do not attend to all patches of one grid",
}


@pytest.mark.parametrize(
    ("pair", "reason"), REFUSALS.items(), ids=lambda x: "-".join(x) if isinstance(x, tuple) else ""
)
def test_a_method_without_meaning_is_refused_in_one_line(models, pair, reason):
    name, method = pair
    able = ", ".join(other for other, why in methods_of(models[name]).items() if not why)
    with pytest.raises(ValueError) as error:
        explain(models[name], torch.rand(3, 64, 64), method)
    assert str(error.value) == f"{method} has no meaning for {name}: {reason}. Methods that have: {able}."
    assert ("class-attention" if name.startswith("xcit") else "gradcam") in able
