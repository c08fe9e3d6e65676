"""DeiT is the authors' model, at any size."""

import copy
import pickle

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import resample_abs_pos_embed
from torch.nn import functional as F

from tetravit.backbones.deit import DeiT
from tetravit.models import create_backbone, create_model
from tetravit.weights.deit import LAYOUTS

OFFICIAL, TIMM = LAYOUTS["deit"]["official"], LAYOUTS["deit"]["timm"]
PARAMETERS = {
    "deit_tiny": 5_717_416,
    "deit_small": 22_050_664,
    "deit_base": 86_567_656,
    "deit_tiny_distilled": 5_910_800,
    "deit_small_distilled": 22_436_432,
    "deit_base_distilled": 87_338_192,
}


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


def test_timm_state_loads_and_ours_exports_back(theirs, tiny):
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(tiny(images), theirs(images), atol=1e-5, rtol=0)
        torch.testing.assert_close(
            tiny.forward_features(images), theirs.forward_features(images), atol=1e-5, rtol=0
        )
    back = TIMM.to_theirs(tiny.state_dict())
    assert back.keys() == theirs.state_dict().keys()
    assert all(torch.equal(value, back[key]) for key, value in theirs.state_dict().items())


def test_official_names_are_those_of_timm():
    assert OFFICIAL is TIMM


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts_are_exact(name):
    with torch.device("meta"):
        model = create_model(name)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


@settings(max_examples=10, deadline=None)
@given(height=st.integers(32, 150), width=st.integers(32, 150))
def test_any_size_gives_the_promised_maps(tiny, height, width):
    images = torch.randn(1, 3, height, width)
    with torch.no_grad():
        maps = tiny.feature_maps(images)
        assert torch.isfinite(tiny(images)).all()
    assert [m.shape for m in maps] == [(1, 192, -(-height // 16), -(-width // 16))] * 4


@pytest.mark.slow  # 800 x 1333 pixels
def test_a_detection_size_works(tiny):
    with torch.no_grad():
        assert torch.isfinite(tiny(torch.randn(1, 3, 800, 1333))).all()


def test_an_answer_does_not_depend_on_batch_mates(tiny):
    images = torch.randn(3, 3, 80, 105)
    with torch.no_grad():
        together = tiny(images)
        alone = torch.cat([tiny(image[None]) for image in images])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_the_last_block_for_the_class_token_alone_changes_nothing(tiny):
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        features = tiny.forward_features(images)
        assert features.shape == (2, 1 + 4 * 6, 192)
        torch.testing.assert_close(tiny.backbone.pool(features), tiny.backbone(images), atol=5e-6, rtol=0)


def test_maps_are_the_patches_after_four_blocks(tiny):
    images = torch.randn(1, 3, 64, 96)
    seen = []
    hooks = [
        block.register_forward_hook(lambda _, __, out: seen.append(out)) for block in tiny.backbone.blocks
    ]
    with torch.no_grad():
        maps = tiny.feature_maps(images)
    for hook in hooks:
        hook.remove()
    for i, got in zip((3, 5, 7, 11), maps, strict=True):
        assert torch.equal(got, seen[i][:, 1:].mT.unflatten(2, (4, 6)))


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


def test_stochastic_depth_grows_linearly():
    model = DeiT(dim=16, num_heads=4, drop_path=0.11)
    assert [block.drop_path.rate for block in model.blocks] == pytest.approx([0.01 * i for i in range(12)])


def test_every_parameter_gets_a_gradient():
    model = create_model("deit_tiny", num_classes=5, drop_path=0.1).train()
    model(torch.randn(2, 3, 64, 50)).square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_checkpointing_gives_the_same_gradients(tiny):
    model = copy.deepcopy(tiny).train()
    images = torch.randn(2, 3, 64, 64)
    gradients = []
    for mode in (False, True):
        model.set_grad_checkpointing(mode)
        model.zero_grad()
        model(images).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for kept, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(kept, recomputed)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_models_stay_close(tiny, dtype):
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected = tiny.backbone(images)
        low = copy.deepcopy(tiny).to(dtype).backbone(images.to(dtype)).float()
    assert F.cosine_similarity(low, expected).min() > 0.99


def test_copies_pickles_and_channels_last_answer_the_same(tiny):
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected = tiny(images)
        assert torch.equal(copy.deepcopy(tiny)(images), expected)
        assert torch.equal(pickle.loads(pickle.dumps(tiny))(images), expected)
        last = copy.deepcopy(tiny).to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(last(images), expected, atol=1e-5, rtol=0)


def test_image_size_sets_the_grid_of_the_positions():
    model = create_model("deit_tiny", num_classes=0, image_size=384)
    assert model.backbone.pos_embed.table.shape == (1, 1 + 24 * 24, 192)


def test_pyramid_has_strides_4_8_16_32():
    backbone = create_backbone("deit_tiny").eval()
    with torch.no_grad():
        maps = backbone(torch.randn(1, 3, 96, 160))
    assert [m.shape[1:] for m in maps] == [(192, 96 // s, 160 // s) for s in (4, 8, 16, 32)]


def test_freezing_the_stem_reaches_positions_and_the_class_token():
    model = DeiT(dim=16, num_heads=4)
    model.freeze(1)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"patch_embed.weight", "patch_embed.bias", "pos_embed.table", "cls_token.token"}


def test_positions_and_class_token_are_never_decayed():
    assert create_model("deit_tiny").no_weight_decay() == {
        "backbone.pos_embed.table",
        "backbone.cls_token.token",
    }


@pytest.mark.slow
def test_one_exported_graph_serves_every_batch_and_size(distilled):
    dynamic = torch.export.Dim.DYNAMIC
    program = torch.export.export(
        distilled, (torch.randn(2, 3, 96, 128),), dynamic_shapes=({0: dynamic, 2: dynamic, 3: dynamic},)
    )
    for shape in ((1, 3, 64, 64), (3, 3, 70, 333), (2, 3, 224, 224), (1, 3, 32, 32)):
        images = torch.randn(*shape)
        with torch.no_grad():
            torch.testing.assert_close(program.module()(images), distilled(images), atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dynamic"), [("deit_tiny", False), ("deit_tiny", True), ("deit_tiny_distilled", True)]
)
def test_captures_without_graph_breaks(name, dynamic):
    torch.compiler.reset()  # graphs of all classifiers share one limit
    model = create_model(name, depth=2).eval()
    captured = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for shape in ((2, 3, 64, 64), (1, 3, 50, 96)):
        images = torch.randn(*shape)
        with torch.no_grad():
            for got, wanted in zip(captured(images, "each"), model(images, "each"), strict=True):
                torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)
            torch.testing.assert_close(captured(images), model(images), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.randn(2, 4, 64, 64), "images must be (B, 3, Hi, Wi); got (2, 4, 64, 64)."),
        (torch.randn(1, 3, 31, 64), "images must be at least 32 pixels high and wide; got 31 x 64."),
    ],
)
def test_images_it_cannot_read(tiny, images, message):
    with pytest.raises(ValueError) as error:
        tiny(images)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 100}, "dim must be a multiple of num_heads; got dim=100, num_heads=6."),
        ({"patch_size": 0}, "patch_size is 1 pixel or more; got 0."),
        ({"drop_path": 1.0}, "drop_path is a probability in [0, 1); got 1.0."),
    ],
)
def test_arguments_it_cannot_take(arguments, message):
    with pytest.raises(ValueError) as error:
        DeiT(**arguments)
    assert str(error.value) == message


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
