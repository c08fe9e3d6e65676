"""DeiT is the authors' model, at any size."""

import copy

import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed

from tetravit.backbones.deit import DeiT
from tetravit.models import create_model
from tetravit.weights.deit import LAYOUTS

OFFICIAL, TIMM = LAYOUTS["deit"]["official"], LAYOUTS["deit"]["timm"]


@pytest.fixture(scope="module")
def theirs():
    torch.manual_seed(0)
    return timm.create_model("deit_tiny_patch16_224").eval()


@pytest.fixture(scope="module")
def tiny(theirs):
    """The tiny model with timm's tensors, in evaluation mode."""
    model = create_model("deit_tiny").eval()
    model.load_state_dict(TIMM.to_ours(theirs.state_dict()))
    return model


def test_tokens_are_those_of_timm(theirs, tiny):
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        expected = theirs.forward_features(images)
        torch.testing.assert_close(tiny.forward_features(images), expected, atol=1e-5, rtol=0)


def test_official_names_are_those_of_timm():
    assert OFFICIAL is TIMM


def test_attention_maps_follow_the_image_through_the_blocks(tiny):
    images = torch.randn(2, 3, 64, 80)
    with torch.no_grad():
        maps = [m.values for m in tiny.backbone.attention(images, kinds=["self"])]
        x, _ = tiny.backbone._embed(images)
        for block in tiny.backbone.blocks[:4]:
            x = block(x)
        block = tiny.backbone.blocks[4]
        expected = block.attn.attention(block.norm1(x))
        final = tiny.backbone.attention(images, kinds=["class"])[-1].values
    assert [m.shape for m in maps] == [(2, 3, 21, 21)] * 12
    assert torch.equal(maps[4], expected)
    for weights in maps:
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:3]))
    torch.testing.assert_close(final, maps[-1][:, :, 0, 1:].unflatten(2, (4, 5)))


def test_norms_have_the_epsilon_of_the_authors():
    norms = [m for m in DeiT(dim=16, num_heads=4).modules() if isinstance(m, torch.nn.LayerNorm)]
    assert len(norms) == 25
    assert {norm.eps for norm in norms} == {1e-6}


def test_freezing_the_stem_reaches_positions_and_the_class_token():
    model = DeiT(dim=16, num_heads=4)
    model.freeze(1)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"patch_embed.weight", "patch_embed.bias", "pos_embed.table", "cls_token.token"}


@pytest.fixture(scope="module")
def their_distilled():
    torch.manual_seed(0)
    model = timm.create_model("deit_tiny_distilled_patch16_224", depth=2).eval()
    torch.nn.init.normal_(model.head_dist.bias)  # so that the heads differ
    return model


@pytest.fixture(scope="module")
def distilled(their_distilled):
    """Two blocks of the tiny distilled model with timm's tensors, in evaluation mode."""
    model = create_model("deit_tiny_distilled", depth=2).eval()
    model.load_state_dict(TIMM.to_ours(their_distilled.state_dict()))
    return model


def test_timm_distilled_state_loads_and_ours_exports_back(their_distilled, distilled):
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(distilled(images), their_distilled(images), atol=1e-5, rtol=0)
        torch.testing.assert_close(
            distilled.backbone(images),
            their_distilled.forward_head(their_distilled.forward_features(images), pre_logits=True),
            atol=1e-5,
            rtol=0,
        )
    back = TIMM.to_theirs(distilled.state_dict())
    assert back.keys() == their_distilled.state_dict().keys()
    assert all(torch.equal(value, back[key]) for key, value in their_distilled.state_dict().items())


def test_each_token_has_its_head(their_distilled, distilled):
    images = torch.randn(2, 3, 224, 224)
    both = copy.deepcopy(their_distilled).train()
    both.set_distilled_training(True)
    with torch.no_grad():
        first, second = distilled(images, heads="each")
        for ours, theirs in zip((first, second), both(images), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
        assert torch.equal(distilled(images), (first + second) / 2)
    assert not torch.allclose(first, second, atol=0.1)


def test_one_head_answers_twice(tiny):
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        first, second = tiny(images, heads="each")
        assert torch.equal(first, tiny(images))
    assert first is second


def test_the_embedding_is_the_mean_of_both_tokens(distilled):
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        features = distilled.forward_features(images)
        assert features.shape == (2, 2 + 4 * 6, 192)
        mean = (features[:, 0] + features[:, 1]) / 2
        torch.testing.assert_close(distilled.backbone.pool(features), mean)
        torch.testing.assert_close(distilled.backbone(images), mean, atol=5e-6, rtol=0)
    headless = create_model("deit_tiny_distilled", num_classes=0, depth=1).eval()
    assert headless.head_dist is None
    assert headless(images).shape == (2, 192)


def test_no_map_holds_a_token(distilled):
    images = torch.randn(1, 3, 64, 96)
    seen = []
    hook = distilled.backbone.blocks[-1].register_forward_hook(lambda _, __, out: seen.append(out))
    with torch.no_grad():
        maps = distilled.feature_maps(images)
        *_, attention, read = distilled.backbone.attention(images)
    hook.remove()
    assert torch.equal(maps[-1], seen[0][:, 2:].mT.unflatten(2, (4, 6)))
    assert (attention.kind, attention.prefix, read.kind) == ("self", 2, "class")
    assert torch.equal(read.values, attention.values[:, :, 0, 2:].unflatten(2, (4, 6)))


def test_positions_of_both_tokens_stay_when_the_image_grows(their_distilled):
    """As timm resizes them, two rows in front, without the antialiasing that the authors do not have."""
    theirs = their_distilled.pos_embed
    model = create_model("deit_tiny_distilled", depth=2, image_size=384, weights=their_distilled.state_dict())
    ours = model.backbone.pos_embed.table
    assert ours.shape == (1, 2 + 24 * 24, 192)
    assert torch.equal(ours[:, :2], theirs[:, :2])
    wanted = resample_abs_pos_embed(theirs, (24, 24), (14, 14), num_prefix_tokens=2, antialias=False)
    torch.testing.assert_close(ours, wanted, atol=1e-6, rtol=0)


def test_other_classes_get_two_fresh_heads(their_distilled, capsys):
    model = create_model("deit_tiny_distilled", depth=2, num_classes=7, weights=their_distilled.state_dict())
    assert (model.head.out_features, model.head_dist.out_features) == (7, 7)
    assert model.report.missing == [
        f"{head}.{part} (fresh)" for head in ("head", "head_dist") for part in ("weight", "bias")
    ]
    model = create_model("deit_tiny_distilled", depth=2, num_classes=0, weights=their_distilled.state_dict())
    assert len(model.report.dropped) == 4


def test_a_plain_model_does_not_take_distilled_weights(their_distilled):
    with pytest.raises(ValueError) as error:
        create_model("deit_tiny", depth=2, weights=their_distilled.state_dict())
    assert str(error.value) == (
        "the state dict: 'backbone.pos_embed.table' cannot be resized. A table of positions has n * n + 1 rows"
        " for a square grid; got 198."
    )


def test_the_distillation_token_is_neither_decayed_nor_left_out():
    model = create_model("deit_tiny_distilled", depth=1)
    assert model.no_weight_decay() == {
        "backbone.pos_embed.table",
        "backbone.cls_token.token",
        "backbone.dist_token.token",
    }
    model.backbone.freeze(1)
    frozen = {name for name, p in model.backbone.named_parameters() if not p.requires_grad}
    assert "dist_token.token" in frozen
    model = create_model("deit_tiny_distilled", depth=1, drop_path=0.1).train()
    model(torch.randn(2, 3, 64, 50)).square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    assert model.backbone.dist_token.token.std() > 0.01


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_the_authors_names_are_known(size):
    with torch.device("meta"):
        assert create_model(f"deit_{size}_distilled_patch16_224").name == f"deit_{size}_distilled"
        assert create_model(f"deit_{size}_patch16_224").name == f"deit_{size}"


@pytest.mark.slow
def test_both_heads_are_compiled_without_graph_breaks():
    torch.compiler.reset()  # graphs of all classifiers share one limit
    model = create_model("deit_tiny_distilled", depth=2).eval()
    captured = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    for shape in ((2, 3, 64, 64), (1, 3, 50, 96)):
        images = torch.randn(*shape)
        with torch.no_grad():
            for got, wanted in zip(captured(images, "each"), model(images, "each"), strict=True):
                torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)
            torch.testing.assert_close(captured(images), model(images), atol=1e-5, rtol=0)
