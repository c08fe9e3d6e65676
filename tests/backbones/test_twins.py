"""Twins are the authors' models, at any size; padding and mask are those of their dense releases."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from tetravit.backbones.twins import (
    SVT,
    ConditionalPosition,
    GlobalAttention,
    LocalAttention,
    TileConv,
    Twins,
)
from tetravit.models import create_backbone, resolve
from tetravit.weights.twins import LAYOUTS

OFFICIAL, TIMM = LAYOUTS["twins"]["official"], LAYOUTS["twins"]["timm"]
TINY = {"dims": (8, 16, 24, 32), "num_heads": (1, 2, 2, 4), "mlp_ratios": (2, 2, 2, 2)}


def tiny(letters="LG", **options):
    torch.manual_seed(0)
    return Twins(**{**TINY, "depths": (2, 2, 3, 2), "pattern": (letters,) * 4, **options})


@pytest.fixture(scope="module", params=["LG", "G"], ids=["svt", "pcpvt"])
def model(request):
    """A narrow model of either kind, in evaluation mode."""
    return tiny(request.param).eval()


def test_authors_names_are_aliases():
    assert resolve("pcpvt_small_v0") == "twins_pcpvt_small"
    assert resolve("alt_gvt_large") == "twins_svt_large"


def test_the_last_map_normed_and_averaged_is_the_embedding(model):
    images = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        last = model.feature_maps(images)[-1].flatten(2).mT
        torch.testing.assert_close(model.forward_features(images), model.norm(last))
        torch.testing.assert_close(model(images), model.norm(last).mean(dim=1))


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(height=st.integers(32, 150), width=st.integers(32, 150))
def test_masked_windows_do_not_depend_on_the_other_images_of_a_batch(height, width):
    model, images = tiny(window_mask="segmentation").eval(), torch.randn(3, 3, height, width)
    with torch.no_grad():
        alone = torch.cat([model(image[None]) for image in images])
        torch.testing.assert_close(model(images), alone, atol=1e-5, rtol=0)


def attend(q, k, v, added=0.0):
    """Softmax attention as it is written; heads before tokens."""
    return (q @ k.mT / q.shape[-1] ** 0.5 + added).softmax(dim=-1) @ v


@pytest.mark.parametrize("grid", [(16, 24), (19, 23), (8, 8)], ids=str)
def test_global_attention_is_the_written_formula(grid):
    layer = GlobalAttention(16, num_heads=2, sr_ratio=8).double()
    x = torch.randn(2, *grid, 16, dtype=torch.double)
    summary = F.conv2d(x.permute(0, 3, 1, 2), layer.sr.weight, layer.sr.bias, stride=8).flatten(2).mT
    q = layer.q(x.flatten(1, 2)).view(2, -1, 2, 8).transpose(1, 2)
    k, v = layer.kv(layer.norm(summary)).view(2, -1, 2, 2, 8).permute(2, 0, 3, 1, 4)
    expected = layer.proj(attend(q, k, v).transpose(1, 2).reshape(2, *grid, 16))
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer.attention(x) @ v, attend(q, k, v))


def authors_mask(height, width, size):
    """-1000 between tokens and padding, with the slice of the segmentation release that a pad of 0 turns into all."""
    below, right = -height % size, -width % size
    outside = torch.zeros(height + below, width + right, dtype=torch.double)
    outside[-below:, :] = 1
    outside[:, -right:] = 1
    windows = outside.unfold(0, size, size).unfold(1, size, size).reshape(-1, size * size)
    return (windows[:, :, None] != windows[:, None, :]) * -1000.0


@pytest.mark.parametrize("mask", ["none", "segmentation"])
@pytest.mark.parametrize("grid", [(14, 7), (16, 21), (14, 9), (16, 23), (3, 5)], ids=str)
def test_local_attention_is_the_written_formula(grid, mask):
    """Also where one side alone is padded, and the mask of the segmentation release does not act."""
    layer = LocalAttention(16, num_heads=2, window_size=7, window_mask=mask).double()
    x = torch.randn(2, *grid, 16, dtype=torch.double)
    rows, columns = -(-grid[0] // 7), -(-grid[1] // 7)
    padded = torch.zeros(2, rows * 7, columns * 7, 16, dtype=torch.double)
    padded[:, : grid[0], : grid[1]] = x
    added = authors_mask(*grid, 7) if mask == "segmentation" else torch.zeros(rows * columns, 49, 49)
    out = torch.empty_like(padded)
    for i in range(rows):
        for j in range(columns):
            place = (slice(None), slice(7 * i, 7 * i + 7), slice(7 * j, 7 * j + 7))
            q, k, v = layer.qkv(padded[place].reshape(2, 49, 16)).view(2, 49, 3, 2, 8).permute(2, 0, 3, 1, 4)
            mixed = attend(q, k, v, added[i * columns + j].double())
            out[place] = mixed.transpose(1, 2).reshape(2, 7, 7, 16)
    torch.testing.assert_close(layer(x), layer.proj(out[:, : grid[0], : grid[1]]))


@settings(max_examples=20, deadline=None)
@given(height=st.integers(1, 16), width=st.integers(1, 16), mask=st.sampled_from(["none", "segmentation"]))
def test_local_attention_weights_are_those_it_uses(height, width, mask):
    layer, x = LocalAttention(8, 2, 7, mask), torch.randn(2, height, width, 8)
    weights = layer.attention(x)
    padded = F.pad(x, (0, 0, 0, -width % 7, 0, -height % 7))
    assert weights.shape == (2 * padded.shape[1] * padded.shape[2] // 49, 2, 49, 49)
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:3]))
    first = padded[:1, :7, :7].reshape(1, 49, 8)
    v = layer.qkv(first).view(1, 49, 3, 2, 4).permute(2, 0, 3, 1, 4)[2]
    mixed = (weights[:1] @ v).transpose(1, 2).reshape(7, 7, 8)[:height, :width]
    torch.testing.assert_close(layer(x)[0, :7, :7], layer.proj(mixed))


def test_the_mask_acts_only_where_both_sides_are_padded():
    plain, masked = tiny().eval(), tiny(window_mask="segmentation").eval()
    with torch.no_grad():
        for grid, differs in (((10, 13), True), ((14, 13), False), ((10, 14), False), ((14, 14), False)):
            x = torch.randn(1, *grid, 8)
            same = torch.equal(plain.blocks[0][0].attn(x), masked.blocks[0][0].attn(x))
            close = torch.allclose(plain.blocks[0][0].attn(x), masked.blocks[0][0].attn(x), atol=1e-6)
            assert (not close) == differs, (grid, same)


@given(height=st.integers(4, 20), width=st.integers(4, 20), size=st.sampled_from([2, 4]))
@settings(max_examples=25, deadline=None)
def test_tiles_are_summed_and_what_is_left_over_is_cut_off(height, width, size):
    layer, x = TileConv.of_size(3, 8, size).double(), torch.randn(2, height, width, 3, dtype=torch.double)
    tiles = x.unfold(1, size, size).unfold(2, size, size)  # (B, H/s, W/s, C, s, s)
    expected = torch.einsum("bhwcij,dcij->bhwd", tiles, layer.weight) + layer.bias
    torch.testing.assert_close(layer(x), expected)


def test_positions_are_a_depthwise_convolution_added():
    layer, x = ConditionalPosition(6).double(), torch.randn(2, 5, 7, 6, dtype=torch.double)
    expected = x.clone()
    around = F.pad(x, (0, 0, 1, 1, 1, 1))
    for i in range(3):
        for j in range(3):
            expected += around[:, i : i + 5, j : j + 7] * layer.proj.weight[:, 0, i, j]
    torch.testing.assert_close(layer(x), expected + layer.proj.bias)


def test_positions_follow_the_first_block_of_each_stage(model):
    order = []
    hooks = [
        module.register_forward_hook(lambda _module, _inputs, _output, name=name: order.append(name))
        for name, module in model.named_modules()
        if name.startswith(("blocks.", "pos_embeds.", "patch_embeds."))
        and name.count(".") <= 2
        and name[-1].isdigit()
    ]
    with torch.no_grad():
        model(torch.randn(1, 3, 32, 32))
    for hook in hooks:
        hook.remove()
    assert order[:4] == ["patch_embeds.0", "blocks.0.0", "pos_embeds.0", "blocks.0.1"]
    assert order[-4:] == ["patch_embeds.3", "blocks.3.0", "pos_embeds.3", "blocks.3.1"]


def test_blocks_follow_the_pattern_of_their_stage():
    kinds = {GlobalAttention: "G", LocalAttention: "L"}
    model = tiny(pattern=("L", "LG", "LLG", "G"), depths=(2, 3, 5, 1))
    assert ["".join(kinds[type(b.attn)] for b in stage) for stage in model.blocks] == [
        "LL",
        "LGL",
        "LLGLL",
        "G",
    ]


@pytest.mark.parametrize(
    ("pattern", "params_m"), [(("L", "L", "L"), 8.8), (("L", "L", "L", "G"), 22.2), (("LG",) * 4, 24.1)]
)
def test_ablations_of_the_pattern_have_the_papers_size(pattern, params_m):
    """Table 5 of the paper."""
    n = len(pattern)
    whole = {"dims": (64, 128, 256, 512), "depths": (2, 2, 10, 4), "num_heads": (2, 4, 8, 16)}
    options = {key: value[:n] for key, value in whole.items()}
    with torch.device("meta"):
        model = SVT(**options, mlp_ratios=(4,) * n, sr_ratios=(8, 4, 2, 1)[:n], pattern=pattern)
    head = 1000 * (model.embed_dim + 1)
    assert round((sum(p.numel() for p in model.parameters()) + head) / 1e6, 1) == params_m


def test_dense_tasks_follow_the_authors_releases():
    """SVT norms each stage and goes on from there; its segmentation masks the padding; PCPVT does neither."""
    small = {"depths": (2, 2, 2, 2)}
    detect, segment = (
        create_backbone("twins_svt_small", task=task, **small) for task in ("detect", "segment")
    )
    assert detect.backbone.blocks[0][0].attn.window_mask == "none"
    assert segment.backbone.blocks[0][0].attn.window_mask == "segmentation"
    assert [norm.eps for norm in segment.backbone.stage_norms] == [1e-6] * 4
    raw = create_backbone("twins_pcpvt_small", task="segment", depths=(1, 1, 1, 1)).eval()
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(raw(images), raw.backbone.feature_maps(images))
        for level in detect.eval()(images):
            torch.testing.assert_close(level.mean(dim=1), torch.zeros_like(level[:, 0]), atol=1e-5, rtol=0)


def test_stage_norms_come_before_the_next_stage():
    model = tiny(stage_norm=1e-6).eval()
    for norm in model.stage_norms:
        torch.nn.init.uniform_(norm.weight, 0.5, 2.0)
    with torch.no_grad():
        maps = model.feature_maps(torch.randn(1, 3, 64, 64))
        second = model.pos_embeds[1](model.blocks[1][0](model.patch_embeds[1](maps[0].permute(0, 2, 3, 1))))
        second = model.stage_norms[1](model.blocks[1][1](second))
    torch.testing.assert_close(maps[1], second.permute(0, 3, 1, 2))


def test_stochastic_depth_grows_linearly_over_all_blocks():
    model = tiny(drop_path=0.4)
    rates = [block.drop_path.rate for stage in model.blocks for block in stage]
    assert rates == pytest.approx([0.4 * i / 8 for i in range(9)])
    with torch.no_grad():
        images = torch.randn(2, 3, 64, 64)
        assert not torch.equal(model(images), model(images))
        assert torch.equal(model.eval()(images), model(images))


def test_initialisation_is_the_authors():
    model = tiny(dims=(64, 64, 64, 64))
    assert model.blocks[2][0].mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.patch_embeds[1].proj.weight.std().item() == pytest.approx((2 / (4 * 64)) ** 0.5, rel=0.05)
    assert model.pos_embeds[1].proj.weight.std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.1)
    assert all((p == 0).all() for name, p in model.named_parameters() if name.endswith("bias"))


def test_norms_have_the_authors_epsilons(model):
    norms = {name: norm.eps for name, norm in model.named_modules() if isinstance(norm, torch.nn.LayerNorm)}
    summary = {name for name in norms if name.startswith("patch_embeds.") or name.endswith(".attn.norm")}
    assert {eps for name, eps in norms.items() if name in summary} == {1e-5}
    assert {eps for name, eps in norms.items() if name not in summary} == {1e-6}


def test_positions_are_not_decayed(model):
    names = {f"pos_embeds.{i}.proj.{kind}" for i in range(4) for kind in ("weight", "bias")}
    assert model.no_weight_decay() == names
    assert names <= dict(model.named_parameters()).keys()


def test_stages_are_the_stem_and_one_group_per_block():
    model = tiny(stage_norm=1e-6)
    groups = model.stages()
    assert len(groups) == 1 + 9
    assert groups[0] == [model.patch_embeds[0]]
    assert groups[1] == [model.blocks[0][0], model.pos_embeds[0]]
    assert groups[2] == [model.blocks[0][1], model.stage_norms[0]]
    assert groups[3] == [model.patch_embeds[1], model.blocks[1][0], model.pos_embeds[1]]
    assert groups[-1] == [model.blocks[3][1], model.stage_norms[3], model.norm]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "example"),
    [
        ({}, (3, 3, 67, 99)),
        ({"window_mask": "segmentation"}, (2, 3, 224, 224)),
        ({"window_mask": "segmentation"}, (3, 3, 67, 99)),
    ],
    ids=str,
)
def test_masked_windows_are_exported_for_every_batch_and_size(options, example):
    """From 64 pixels up, whatever the example: one window or many, padded on no side, on one or on both."""
    model = tiny(depths=(2, 1, 1, 1), **options).eval()
    dims = {0: torch.export.Dim("batch", min=1, max=64)}
    dims |= {axis: torch.export.Dim(name, min=64, max=2048) for axis, name in ((2, "height"), (3, "width"))}
    program = torch.export.export(model, (torch.randn(example),), dynamic_shapes=(dims,)).module()
    for shape in ((1, 3, 64, 64), (3, 3, 224, 224), (2, 3, 200, 333), (1, 3, 224, 448), (2, 3, 100, 225)):
        images = torch.randn(shape)
        with torch.no_grad():
            torch.testing.assert_close(program(images), model(images), atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_masked_windows_stay_close_in_low_precision(dtype):
    model, images = tiny(window_mask="segmentation").eval(), torch.randn(2, 3, 96, 72)
    with torch.no_grad():
        expected = model(images)
        low = copy.deepcopy(model).to(dtype)(images.to(dtype)).float()
        with torch.autocast("cpu", torch.bfloat16):
            mixed = model(images).float()
    assert F.cosine_similarity(low, expected).min() > 0.99
    assert F.cosine_similarity(mixed, expected).min() > 0.99


@pytest.mark.nightly
def test_masked_windows_are_compiled_without_graph_breaks():
    """The first size is captured as it is, the others as symbols."""
    torch.compiler.reset()
    model = tiny(depths=(2, 1, 1, 1), window_mask="segmentation").eval()
    captured = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for size in ((72, 100), (64, 64), (224, 96)):
            images = torch.randn(2, 3, *size)
            torch.testing.assert_close(captured(images), model(images), atol=1e-5, rtol=0)
