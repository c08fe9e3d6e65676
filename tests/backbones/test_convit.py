"""ConViT is the authors' model, at any size, and its fast attention is the plain one."""

import copy
import math

import pytest
import torch
from authors import golden
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from tetravit.backbones.convit import ConViT, GatedPositionalAttention, offsets
from tetravit.models import create_model
from tetravit.weights.convit import LAYOUTS

OFFICIAL, TIMM = LAYOUTS["convit"]["official"], LAYOUTS["convit"]["timm"]
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


def test_autocast_stays_close_and_leaves_nothing_behind(tiny):
    images = torch.randn(2, 3, 64, 72)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            low = tiny(images).float()
        after = tiny(images)
        expected = copy.deepcopy(tiny)(images)
    assert torch.equal(after, expected)
    assert F.cosine_similarity(low, expected).min() > 0.99


def test_freezing_reaches_positions_and_the_class_token():
    model = ConViT(dim=16, num_heads=4)
    model.freeze(11)
    assert not model.pos_embed.table.requires_grad
    assert not model.blocks[9].attn.gating_param.requires_grad
    assert model.cls_token.token.requires_grad
    model.freeze(12)
    assert not model.cls_token.token.requires_grad
    assert model.blocks[11].norm1.weight.requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_positions_of_wide_images_stay_close_in_low_precision(tiny, dtype):
    images = torch.randn(2, 3, 64, 400)  # 25 patches wide: squared distances are not exact in bfloat16
    with torch.no_grad():
        expected = tiny(images)
        low = copy.deepcopy(tiny).to(dtype)(images.to(dtype)).float()
    assert F.cosine_similarity(low, expected).min() > 0.99
