"""ConViT is the authors' model, at any size, and its fast attention is the plain one."""

import copy
import math
import pickle

import pytest
import timm
import torch
from authors import golden
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from tetravit.backbones.convit import ConViT, GatedPositionalAttention, offsets
from tetravit.models import create_backbone, create_model
from tetravit.weights.convit import LAYOUTS

OFFICIAL, TIMM = LAYOUTS["convit"]["official"], LAYOUTS["convit"]["timm"]
PARAMETERS = {
    "convit_tiny": 5_710_512,
    "convit_tiny_plus": 9_972_912,
    "convit_small": 27_777_322,
    "convit_small_plus": 48_979_882,
    "convit_base": 86_540_040,
    "convit_base_plus": 153_134_856,
}
STRENGTH = "locality_strength is a number from 0 up; local_init=False starts at random; got "
SHALLOW = {"num_heads": 4, "dim": 32, "depth": 3, "num_gpsa": 2, "image_size": 64}


@pytest.fixture(scope="module")
def tiny():
    """The tiny model with the authors' tensors, in evaluation mode."""
    torch.manual_seed(0)
    model = create_model("convit_tiny").eval()
    model.load_state_dict(OFFICIAL.to_ours(golden("convit_tiny").state()))
    return model


def gpsa(num_heads: int, dtype: torch.dtype = torch.double) -> GatedPositionalAttention:
    """One layer whose heads differ in place, sharpness and gate."""
    layer = GatedPositionalAttention(8 * num_heads, num_heads)
    layer.init_local(0.5)
    for parameter in layer.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    torch.nn.init.normal_(layer.gating_param, std=2.0)
    return layer.to(dtype)


def plain(layer: GatedPositionalAttention, x: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """What the layer answers, by its attention map in full."""
    v = layer.v(x).unflatten(2, (layer.num_heads, -1)).transpose(1, 2)
    return layer.proj((layer.attention(x, grid) @ v).transpose(1, 2).flatten(2))


def test_answers_are_the_authors(tiny):
    authors = golden("convit_tiny")
    for size in authors.sizes:
        with torch.no_grad():
            embedding = tiny.backbone(authors.images(size))
            logits = tiny.head(embedding)
        torch.testing.assert_close(embedding, authors.answer("features", size), atol=5e-5, rtol=0)
        torch.testing.assert_close(logits, authors.answer("logits", size), atol=5e-5, rtol=0)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts_are_exact(name):
    with torch.device("meta"):
        model = create_model(name)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


def test_official_names_map_both_ways(tiny):
    authors = golden("convit_tiny")
    ours = OFFICIAL.to_ours(authors.state())
    back = OFFICIAL.to_theirs(ours)
    assert back.keys() == authors.keys.keys()
    assert all(torch.equal(value, back[key]) for key, value in authors.state().items())
    assert ours.keys() == tiny.state_dict().keys()


def test_timm_state_loads_and_ours_exports_back():
    theirs = timm.create_model("convit_tiny").eval()
    for name, parameter in theirs.named_parameters():
        if name.endswith("gating_param"):
            torch.nn.init.normal_(parameter)
    ours = create_model("convit_tiny").eval()
    ours.load_state_dict(TIMM.to_ours(theirs.state_dict()))
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), atol=1e-5, rtol=0)
    back = TIMM.to_theirs(ours.state_dict())
    assert back.keys() == theirs.state_dict().keys()
    theirs.load_state_dict(back)


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
    seen = {}
    hooks = [
        block.register_forward_hook(lambda _, __, out, i=i: seen.update({i: out}))
        for i, block in enumerate(tiny.backbone.blocks)
    ]
    with torch.no_grad():
        maps = tiny.feature_maps(images)
    for hook in hooks:
        hook.remove()
    for i, got in zip((3, 5, 7, 11), maps, strict=True):
        patches = seen[i][:, -24:]  # from block 10 on the class token stands in front
        assert torch.equal(got, patches.mT.unflatten(2, (4, 6)))


@settings(max_examples=12, deadline=None)
@given(height=st.integers(1, 7), width=st.integers(1, 7), num_heads=st.sampled_from([1, 4, 6, 9]))
def test_fast_attention_is_the_plain_one_in_float64(height, width, num_heads):
    layer = gpsa(num_heads)
    x = torch.randn(2, height * width, 8 * num_heads, dtype=torch.double)
    expected = plain(layer, x, (height, width))
    torch.testing.assert_close(layer(x, (height, width)), expected, atol=1e-12, rtol=0)


def test_fast_attention_has_the_gradients_of_the_plain_one():
    layer = gpsa(4)
    x = torch.randn(2, 15, 32, dtype=torch.double, requires_grad=True)
    gradients = []
    for out in (layer(x, (3, 5)), plain(layer, x, (3, 5))):
        gradients.append(torch.autograd.grad(out.square().sum(), [x, *layer.parameters()]))
    for fast, slow in zip(*gradients, strict=True):
        torch.testing.assert_close(fast, slow, atol=1e-10, rtol=1e-8)


def test_rows_of_the_blended_map_sum_to_one_before_they_are_divided():
    layer = gpsa(9)
    x = torch.randn(2, 20, 72, dtype=torch.double)
    q, k = layer._queries_keys(x)
    gate = layer.gates()[:, None, None]
    content = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)
    blend = (1 - gate) * content + gate * layer.positional_map((4, 5))
    torch.testing.assert_close(blend, layer.attention(x, (4, 5)), atol=1e-14, rtol=0)


def test_offsets_are_key_minus_query_in_x_then_y():
    table = offsets((2, 3))
    assert table.shape == (6, 6, 3)
    for query in range(6):
        for key in range(6):
            dy, dx = key // 3 - query // 3, key % 3 - query % 3
            assert table[query, key].tolist() == [dx, dy, dx**2 + dy**2]


@pytest.mark.parametrize("num_heads", [4, 9, 16])
def test_heads_start_at_the_offsets_of_a_kernel(num_heads):
    layer = GatedPositionalAttention(4 * num_heads, num_heads)
    layer.init_local(1.0)
    side = math.isqrt(num_heads)
    assert torch.equal(layer.v.weight, torch.eye(4 * num_heads))
    for first in range(side):
        for second in range(side):
            x, y = second - (side - 1) / 2, first - (side - 1) / 2
            assert layer.pos_proj.weight[first + side * second].tolist() == [2 * x, 2 * y, -1]


def test_a_strong_start_is_a_convolution():
    layer = GatedPositionalAttention(9, 9)
    layer.init_local(20.0)
    picked = layer.positional_map((5, 5))[:, 12].argmax(-1)  # of the centre of a 5 x 5 grid
    assert picked.tolist() == [6, 11, 16, 7, 12, 17, 8, 13, 18]  # down the columns of the 3 x 3 around it


def test_heads_beyond_the_kernel_keep_random_places():
    layer = GatedPositionalAttention(12, 6)
    before = layer.pos_proj.weight.clone()
    layer.init_local(1.0)
    assert torch.equal(layer.pos_proj.weight[4:], before[4:])
    assert (layer.pos_proj.weight[:4, 2] == -1).all()


def test_locality_strength_scales_the_start():
    weak = ConViT(locality_strength=0.1, **SHALLOW).blocks[1].attn
    assert weak.pos_proj.weight[0].tolist() == pytest.approx([-0.1, -0.1, -0.1])


@pytest.mark.parametrize("num_gpsa", [0, 1, 11])
def test_the_class_token_always_comes_in(num_gpsa):
    model = ConViT(dim=16, num_heads=4, num_gpsa=num_gpsa).eval()
    seen = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    with torch.no_grad():
        features = model.forward_features(torch.randn(1, 3, 48, 64))
    assert features.shape == (1, 13, 16)
    assert seen == [12] * num_gpsa + [13] * (12 - num_gpsa)
    assert model.gates().shape[0] == num_gpsa


def test_gates_are_the_share_of_position(tiny):
    gates = tiny.backbone.gates()
    assert gates.shape == (10, 4)
    assert torch.equal(gates[3], tiny.backbone.blocks[3].attn.gating_param.sigmoid())


def test_gates_choose_between_content_and_position():
    layer, x = gpsa(4), torch.randn(1, 6, 32, dtype=torch.double)
    with torch.no_grad():
        layer.gating_param.fill_(math.inf)
        expected = layer.positional_map((2, 3))[None]
        torch.testing.assert_close(layer.attention(x, (2, 3)), expected)
        torch.testing.assert_close(layer(x, (2, 3)), plain(layer, x, (2, 3)))
        layer.gating_param.fill_(-math.inf)
        torch.testing.assert_close(layer(x, (2, 3)), plain(layer, x, (2, 3)))
        assert not torch.allclose(layer.attention(x, (2, 3)), expected)


def test_attention_maps_follow_the_image_through_the_blocks(tiny):
    images = torch.randn(2, 3, 64, 80)
    with torch.no_grad():
        maps = [m.values for m in tiny.backbone.attention(images, kinds=["gated", "self"])]
        x, grid = tiny.backbone._embed(images)
        for block in tiny.backbone.blocks[:4]:
            x = block(x, grid)
        block = tiny.backbone.blocks[4]
        expected = block.attn.attention(block.norm1(x), grid)
        final = tiny.backbone.attention(images, kinds=["class"])[-1].values
    assert [m.shape for m in maps] == [(2, 4, 20, 20)] * 10 + [(2, 4, 21, 21)] * 2
    assert torch.equal(maps[4], expected)
    for weights in maps:
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:3]))
    torch.testing.assert_close(final, maps[-1][:, :, 0, 1:].unflatten(2, (4, 5)))


def test_positional_factors_are_computed_once_per_size_and_follow_the_weights(monkeypatch):
    layer = gpsa(4, torch.float32)
    calls, axes = [], layer._axes
    monkeypatch.setattr(layer, "_axes", lambda grid: calls.append(grid) or axes(grid))
    x = torch.randn(2, 6, 32)
    with torch.no_grad():
        for grid in ((2, 3), (3, 2), (2, 3)):
            first = layer(x, grid)
        assert calls == [(2, 3), (3, 2)]
        layer.pos_proj.weight.mul_(-1)
        assert not torch.allclose(layer(x, (2, 3)), first)
    layer(x, (2, 3)).sum().backward()
    assert layer.pos_proj.weight.grad.abs().sum() > 0


def test_position_is_not_expanded_over_patches_or_batch():
    rows, columns = gpsa(9)._axes((50, 84))
    assert (rows.shape, columns.shape) == ((9, 50, 50), (9, 84, 84))


def test_positional_factors_of_16_bit_weights_are_computed_in_float32():
    layer = GatedPositionalAttention(36, 9)
    layer.init_local(0.0625)
    expected = layer.double()._axes((40, 50))  # squares up to 2401 need 12 bits, bfloat16 has 8
    for got, factor in zip(layer.bfloat16()._axes((40, 50)), expected, strict=True):
        torch.testing.assert_close(got.double(), factor, atol=1e-6, rtol=0)


def test_norms_have_the_epsilon_of_the_paper():
    norms = [m for m in ConViT(dim=16, num_heads=4).modules() if isinstance(m, torch.nn.LayerNorm)]
    assert len(norms) == 25
    assert {norm.eps for norm in norms} == {1e-6}


def test_stochastic_depth_grows_linearly():
    model = ConViT(dim=16, num_heads=4, drop_path=0.11)
    assert [block.drop_path.rate for block in model.blocks] == pytest.approx([0.01 * i for i in range(12)])


def test_every_parameter_gets_a_gradient():
    model = create_model("convit_tiny", num_classes=5, drop_path=0.1).train()
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
    images = torch.randn(2, 3, 64, 400)  # 25 patches wide: squares that bfloat16 cannot hold
    with torch.no_grad():
        expected = tiny(images)
        low = copy.deepcopy(tiny).to(dtype)(images.to(dtype)).float()
    assert F.cosine_similarity(low, expected).min() > 0.99


def test_autocast_stays_close_and_leaves_nothing_behind(tiny):
    images = torch.randn(2, 3, 64, 72)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            low = tiny(images).float()
        after = tiny(images)
        expected = copy.deepcopy(tiny)(images)
    assert torch.equal(after, expected)
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
    model = create_model("convit_tiny", num_classes=0, image_size=(96, 200)).eval()
    assert model.backbone.pos_embed.table.shape == (1, 6 * 13, 192)
    assert torch.equal(model.backbone.pos_embed((6, 13)), model.backbone.pos_embed.table)


def test_pyramid_has_strides_4_8_16_32():
    backbone = create_backbone("convit_tiny").eval()
    with torch.no_grad():
        maps = backbone(torch.randn(1, 3, 96, 160))
    assert [m.shape[1:] for m in maps] == [(192, 96 // s, 160 // s) for s in (4, 8, 16, 32)]


def test_freezing_reaches_positions_and_the_class_token():
    model = ConViT(dim=16, num_heads=4)
    model.freeze(11)
    assert not model.pos_embed.table.requires_grad
    assert not model.blocks[9].attn.gating_param.requires_grad
    assert model.cls_token.token.requires_grad
    model.freeze(12)
    assert not model.cls_token.token.requires_grad
    assert model.blocks[11].norm1.weight.requires_grad


def test_positions_and_class_token_are_never_decayed():
    assert create_model("convit_tiny").no_weight_decay() == {
        "backbone.pos_embed.table",
        "backbone.cls_token.token",
    }


@pytest.mark.slow
def test_one_exported_graph_serves_every_batch_and_size(tiny):
    dynamic = torch.export.Dim.DYNAMIC
    program = torch.export.export(
        tiny, (torch.randn(2, 3, 96, 128),), dynamic_shapes=({0: dynamic, 2: dynamic, 3: dynamic},)
    )
    for shape in ((1, 3, 64, 64), (3, 3, 70, 333), (2, 3, 224, 224), (1, 3, 32, 32)):
        images = torch.randn(*shape)
        with torch.no_grad():
            torch.testing.assert_close(program.module()(images), tiny(images), atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
def test_captures_without_graph_breaks(dynamic):
    model = create_model("convit_tiny", depth=2, num_gpsa=1).eval()
    captured = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for shape in ((2, 3, 64, 64), (1, 3, 50, 96)):
        images = torch.randn(*shape)
        with torch.no_grad():
            torch.testing.assert_close(captured(images), model(images), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.randn(2, 4, 64, 64), "images must be (B, 3, Hi, Wi); got (2, 4, 64, 64)."),
        (torch.randn(1, 3, 31, 64), "images must be at least 32 pixels high and wide; got 31 x 64."),
        (
            torch.zeros(1, 3, 64, 64, dtype=torch.uint8),
            "images must be float, normalized; got torch.uint8. Use model.preprocess.",
        ),
    ],
)
def test_images_it_cannot_read(tiny, images, message):
    with pytest.raises(ValueError) as error:
        tiny(images)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 100}, "dim must be a multiple of num_heads; got dim=100, num_heads=9."),
        ({"patch_size": 0}, "patch_size is 1 pixel or more; got 0."),
        ({"num_gpsa": 12}, "num_gpsa is between 0 and 11: the class token needs a block; got 12."),
        ({"num_gpsa": -1}, "num_gpsa is between 0 and 11: the class token needs a block; got -1."),
        ({"locality_strength": -1.0}, STRENGTH + "-1.0."),
        ({"locality_strength": math.nan}, STRENGTH + "nan."),
        ({"drop_path": 1.0}, "drop_path is a probability in [0, 1); got 1.0."),
    ],
)
def test_arguments_it_cannot_take(arguments, message):
    with pytest.raises(ValueError) as error:
        ConViT(**arguments)
    assert str(error.value) == message
