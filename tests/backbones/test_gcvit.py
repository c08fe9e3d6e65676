"""GC ViT is the authors' model, at any size."""

import pytest
import timm
import torch
from authors import golden
from dense.answers import DenseGolden, image
from torch.nn import functional as F

from tetravit.backbones.gcvit import GCViT, GlobalAttention, GlobalQuery, LocalAttention
from tetravit.layers.relative_bias import RelativeBias, resize_table, spread
from tetravit.models import create_backbone, create_model, resolve
from tetravit.weights.gcvit import LAYOUTS
from tetravit.weights.read import load_into

OFFICIAL, TIMM = LAYOUTS["gcvit"]["official"], LAYOUTS["gcvit"]["timm"]


@pytest.fixture(scope="module")
def smallest():
    """The smallest model with the authors' tensors, in evaluation mode."""
    torch.manual_seed(0)
    model = create_model("gcvit_xxtiny").eval()
    model.load_state_dict(OFFICIAL.to_ours(golden("gcvit_xxtiny").state()))
    return model


def toy(**options):
    """Two blocks a stage, eight channels a head."""
    return GCViT(dim=16, depths=(2, 2, 2, 2), num_heads=(2, 4, 8, 16), **options)


# The authors' model


@pytest.mark.slow
def test_detection_maps_are_the_authors():
    """Windows of 24 tokens at all stages, padded maps, resized queries: the release's backbone at 300 x 400."""
    authors = DenseGolden("cascade_mask_rcnn_gcvit_tiny")
    backbone = create_backbone("gcvit_tiny").eval()
    state = {k.removeprefix("backbone."): v for k, v in authors.state.items() if k.startswith("backbone.")}
    for i, norm in enumerate(backbone.pyramid.norms):
        norm.load_state_dict({p: state.pop(f"norm{i}.{p}") for p in ("weight", "bias")})
    backbone.backbone.norm = torch.nn.Identity()  # the release has no last norm, and the maps do not need it
    ours = OFFICIAL.to_ours(state)
    backbone.backbone.load_state_dict({k.removeprefix("backbone."): v for k, v in ours.items()})
    canvas = torch.zeros(1, 3, 320, 416)
    canvas[0, :, :300, :400] = image("det0", 300, 400)
    with torch.no_grad():
        maps = backbone(canvas)
    for i, level in enumerate(maps):
        authors.check_slice(f"backbone{i}", level)


@pytest.mark.parametrize(
    ("name", "options", "windows"),
    [
        ("gcvit_tiny", {}, (7, 7, 14, 7)),
        ("gcvit_large_384", {}, (12, 12, 24, 12)),
        ("gcvit_large_512", {}, (16, 16, 32, 16)),
        ("gcvit_tiny", {"image_size": 384}, (12, 12, 24, 12)),
        ("gcvit_tiny", {"image_size": 225}, (8, 8, 15, 8)),
        ("gcvit_tiny", {"image_size": (512, 384)}, (12, 12, 24, 12)),
        ("gcvit_tiny", {"image_size": 512, "window_size": [5, 6, 7, 8]}, (5, 6, 7, 8)),
    ],
)
def test_windows_follow_the_image_size(name, options, windows):
    with torch.device("meta"):
        backbone = create_model(name, **options).backbone
    assert backbone.window_size == windows
    assert tuple(level.blocks[0].attn.bias.window_size for level in backbone.levels) == windows


@pytest.mark.parametrize(
    ("options", "pools"),
    [
        ({}, 0),
        ({"window_size": (24, 24, 24, 24)}, 1),
        ({"window_size": (24, 24, 24, 24), "query_pooling": "keep"}, 0),
        ({"query_pooling": "pool"}, 1),
    ],
)
def test_queries_of_the_third_stage_follow_the_windows(options, pools):
    with torch.device("meta"):
        assert [level.query.num_pools for level in toy(**options).levels] == [3, 2, pools, 0]


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("gc_vit_xxtiny", "gcvit_xxtiny"),
        ("gc_vit_large_224_21k", "gcvit_large"),
        ("gc_vit_large_512_21k", "gcvit_large_512"),
    ],
)
def test_the_authors_names_are_understood(theirs, ours):
    assert resolve(theirs) == ours


@pytest.mark.parametrize("window", [7, 14])
def test_the_authors_index_buffers_are_written_back(window):
    table = torch.randn((2 * window - 1) ** 2, 2)
    back = OFFICIAL.to_theirs({"backbone.levels.0.blocks.1.attn.bias.table": table})
    expected = timm.layers.gen_relative_position_index((window, window))
    index = back["levels.0.blocks.1.attn.relative_position_index"]
    assert index.dtype == torch.int64
    assert torch.equal(index, expected)


def test_initialisation_is_the_authors():
    torch.manual_seed(0)
    backbone = create_model("gcvit_xxtiny").backbone
    block = backbone.levels[3].blocks[0]
    for matrix in (
        block.attn.qkv.weight,
        block.mlp.fc1.weight,
        backbone.levels[3].query.convs[0].se.fc1.weight,
    ):
        assert 0.018 < matrix.std() < 0.022
    assert 0.018 < block.attn.bias.table.std() < 0.022
    assert (block.attn.qkv.bias == 0).all()
    pointwise = backbone.levels[3].query.convs[0].pointwise.weight  # a convolution keeps PyTorch's uniform
    assert abs(pointwise.std() - (3 * 512) ** -0.5) < 0.002
    assert backbone.no_weight_decay() == set()


def test_layer_scale_is_there_only_where_asked_for():
    assert not any("gamma" in name for name, _ in toy().named_parameters())
    scaled = toy(layer_scale=1e-5)
    gammas = [p for name, p in scaled.named_parameters() if "gamma" in name]
    assert len(gammas) == 16
    assert all((gamma == 1e-5).all() for gamma in gammas)


# Parts, each against its written formula


def test_the_bias_of_a_pair_is_that_of_its_offset():
    w, heads = 3, 2
    table = torch.randn((2 * w - 1) ** 2, heads)
    bias = spread(table, w)
    for i in range(w * w):
        for j in range(w * w):
            row, column = i // w - j // w + w - 1, i % w - j % w + w - 1
            assert torch.equal(bias[:, i, j], table[row * (2 * w - 1) + column])


def test_the_bias_follows_changed_tables():
    bias = RelativeBias(3, 2)
    with torch.no_grad():
        before = bias(torch.float32)
        assert bias(torch.float32) is before
        bias.table.add_(1)
        torch.testing.assert_close(bias(torch.float32), before + 1)
        assert bias(torch.bfloat16).dtype == torch.bfloat16


def test_attention_is_the_written_formula():
    local, everywhere = LocalAttention(16, 2, 3).double(), GlobalAttention(16, 2, 3).double()
    x, query = torch.randn(4, 9, 16).double(), torch.randn(4, 2, 9, 8).double()

    def heads(x):
        return x.reshape(4, 9, 2, 8).transpose(1, 2)

    q, k, v = (heads(part) for part in local.qkv(x).chunk(3, dim=-1))
    attn = (q * 8**-0.5 @ k.mT + spread(local.bias.table, 3)).softmax(-1)
    torch.testing.assert_close(local(x, query), local.proj((attn @ v).transpose(1, 2).reshape(4, 9, 16)))
    torch.testing.assert_close(local.attention_weights(x, query), attn)

    k, v = (heads(part) for part in everywhere.kv(x).chunk(2, dim=-1))
    attn = (query * 8**-0.5 @ k.mT + spread(everywhere.bias.table, 3)).softmax(-1)
    expected = everywhere.proj((attn @ v).transpose(1, 2).reshape(4, 9, 16))
    torch.testing.assert_close(everywhere(x, query), expected)
    torch.testing.assert_close(everywhere.attention_weights(x, query), attn)


def test_global_queries_at_the_papers_size_are_not_resized():
    query = GlobalQuery(16, 2, 7, num_convs=1, num_pools=0).eval()
    x = torch.randn(2, 7, 7, 16)
    expected = query.convs[0](x).unflatten(3, (2, 8)).flatten(1, 2).transpose(1, 2)  # (B, heads, N, D)
    assert torch.equal(query(x), expected)
    assert query(torch.randn(2, 12, 5, 16)).shape == (2, 2, 49, 8)


def test_tables_are_resized_per_head():
    small = torch.randn(13 * 13, 2)
    large = resize_table(small, 24)
    assert large.shape == (47 * 47, 2)
    for head in range(2):
        expected = F.interpolate(
            small[:, head].view(1, 1, 13, 13), (47, 47), mode="bicubic", align_corners=False
        )
        torch.testing.assert_close(large[:, head], expected.flatten())
    assert torch.equal(resize_table(small, 7), small)


def test_weights_of_one_window_load_into_another(smallest):
    state = smallest.state_dict()
    larger = create_model("gcvit_xxtiny", window_size=(24, 24, 24, 24))
    report = load_into(larger, state)
    resized = larger.state_dict()
    assert len(report.resized) == sum(k.endswith("bias.table") for k in state)
    name = "backbone.levels.2.blocks.1.attn.bias.table"
    torch.testing.assert_close(resized[name], resize_table(state[name], 24))
    assert all(torch.equal(resized[k], v) for k, v in state.items() if not k.endswith("bias.table"))


# Any size


@pytest.mark.slow
def test_a_map_cut_once_is_a_map_cut_per_block(smallest, monkeypatch):
    """Windows that divide the map stay windows for the whole stage: a shorter way to the same numbers."""
    images = torch.randn(2, 3, 224, 448)
    with torch.no_grad():
        expected = smallest(images)
        level, x = smallest.backbone.levels[0], torch.randn(2, 14, 21, 64)
        query = level.query(x)[:, None].expand(-1, 6, -1, -1, -1).flatten(0, 1)
        per_block = x
        for block in level.blocks:
            per_block = block(per_block, query, "map")
        torch.testing.assert_close(level(x, smallest.backbone.run), per_block, atol=1e-5, rtol=0)
        monkeypatch.setattr("tetravit.backbones.gcvit.int", float, raising=False)  # no side is known any more
        torch.testing.assert_close(smallest(images), expected, atol=1e-5, rtol=0)


def test_padding_is_zero_behind_the_norm_and_seen():
    """A 5 x 4 map in windows of 3: the oracle pads, attends window by window and crops by hand."""
    block = toy(window_size=(3, 3, 3, 3)).levels[0].blocks[0].eval()
    x = torch.randn(2, 5, 4, 16)
    padded = torch.zeros(2, 6, 6, 16)
    padded[:, :5, :4] = block.norm1(x)
    read = torch.zeros_like(padded)
    for r in (0, 3):
        for c in (0, 3):
            window = padded[:, r : r + 3, c : c + 3].reshape(2, 9, 16)
            read[:, r : r + 3, c : c + 3] = block.attn(window, None).view(2, 3, 3, 16)
    expected = x + read[:, :5, :4]
    expected = expected + block.mlp(block.norm2(expected))
    torch.testing.assert_close(block(x, None, "map"), expected)


def test_images_pass_the_stem_in_parts_or_at_once(smallest):
    stem, images = smallest.backbone.patch_embed, torch.randn(5, 3, 50, 70)
    with torch.no_grad():
        torch.testing.assert_close(stem(images), stem.whole(images), atol=1e-5, rtol=0)


# What engineers expect


def test_features_pool_to_the_embedding(smallest):
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        features = smallest.forward_features(images)
        assert features.shape == (2, 2 * 3, 512)
        torch.testing.assert_close(features.mean(1), smallest.backbone(images))
        last = smallest.feature_maps(images)[-1].permute(0, 2, 3, 1)
        torch.testing.assert_close(smallest.backbone.norm(last).flatten(1, 2), features)


def test_the_pyramid_norms_each_level():
    backbone = create_backbone("gcvit_xxtiny", window_size=(7, 7, 14, 7)).eval()
    images = torch.randn(1, 3, 96, 128)
    with torch.no_grad():
        maps, raw = backbone(images), backbone.backbone.feature_maps(images)
    assert backbone.channels == (64, 128, 256, 512)
    for level, norm, x in zip(maps, backbone.pyramid.norms, raw, strict=True):
        assert norm.eps == 1e-5
        torch.testing.assert_close(
            level, F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2]).permute(0, 3, 1, 2)
        )
    for task in ("detect", "segment"):
        with torch.device("meta"):
            assert create_backbone("gcvit_xxtiny", task=task).backbone.window_size == (24, 24, 24, 24)


@pytest.mark.parametrize("side", [14, 13])
def test_stochastic_depth_is_per_image(side):
    """Whole windows or padded maps: a branch is skipped for all windows of an image, or for none."""
    level, x = toy().train().levels[0], torch.randn(64, side, side, 16)
    for block in level.blocks:
        block.drop_path.rate = 0.5
    changed = (level(x, toy().run) != x).any(-1).flatten(1)  # (B, N)
    assert (changed == changed[:, :1]).all()
    assert changed.any()
    assert not changed.all()


def test_freezing_stops_the_first_stages():
    model = create_model("gcvit_xxtiny", num_classes=3)
    backbone = model.backbone
    backbone.freeze(2)
    model.train()
    assert not any(
        p.requires_grad for p in [*backbone.patch_embed.parameters(), *backbone.levels[0].parameters()]
    )
    assert all(p.requires_grad for p in backbone.levels[1].parameters())
    assert not backbone.levels[0].training
    assert {id(p) for group in backbone.stages() for m in group for p in m.parameters()} == {
        id(p) for p in backbone.parameters()
    }


def test_an_unknown_option_is_named():
    with pytest.raises(ValueError) as error:
        create_model("gcvit_tiny", window_sizes=(7, 7, 14, 7))
    assert str(error.value) == "gcvit_tiny has no option 'window_sizes'. Did you mean 'window_size'?"


def test_biases_and_tables_it_cannot_make():
    with pytest.raises(ValueError) as error:
        RelativeBias(0, 2)
    assert str(error.value) == "A window side is at least 1 token; got window_size=0."
    for rows in (168, 36):
        with pytest.raises(ValueError) as error:
            resize_table(torch.zeros(rows, 2), 7)
        assert str(error.value) == f"A bias table has (2 * window_size - 1) ** 2 rows; got {rows}."


def test_layer_scales_and_windows_that_divide_the_map_get_gradients():
    model = toy(drop_path=0.1, layer_scale=0.1).train()
    model(torch.randn(2, 3, 224, 224)).square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.slow
def test_layer_scales_load_from_timm():
    theirs = timm.create_model("gcvit_xxtiny", layer_scale=0.1).eval()
    ours = create_model("gcvit_xxtiny", layer_scale=0.1).eval()
    ours.load_state_dict(TIMM.to_ours(theirs.state_dict()))
    images = torch.randn(3, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), atol=1e-5, rtol=0)
    assert TIMM.to_theirs(ours.state_dict()).keys() == theirs.state_dict().keys()
