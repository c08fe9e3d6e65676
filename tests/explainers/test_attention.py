"""Measures of attention have their exact values where these are known."""

from dataclasses import replace

import pytest
import torch
from selfsup import inputs
from selfsup.answers import golden

from tetravit.backbones.convit import GatedPositionalAttention
from tetravit.explainers.parts import attention
from tetravit.explainers.parts.attention import (
    distances,
    legacy_non_locality,
    mass_mask,
    non_locality,
    positional_heads,
    rollout,
    uniform_non_locality,
)
from tetravit.models import create_model
from tetravit.structures import AttentionMap


def record(values, grid, kind="gated", prefix=0):
    return AttentionMap(kind, "layer", values, values[..., prefix:].sum(-1), grid, 16, 7.5, prefix=prefix)


@pytest.mark.parametrize(
    ("grid", "expected"), [((14, 14), 7.28076), ((16, 16), 8.32608), ((14, 20), 8.92008)], ids=str
)
def test_equal_attention_has_the_mean_distance(grid, expected):
    count = grid[0] * grid[1]
    assert uniform_non_locality(grid) == pytest.approx(expected, abs=5e-6)
    flat = torch.full((1, 2, count, count), 1 / count)
    torch.testing.assert_close(
        non_locality(record(flat, grid)), torch.full((2,), expected), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize(
    ("grid", "heads", "position", "blend"),
    [
        ((14, 14), 4, 0.9860, 2.6789),
        ((14, 14), 9, 1.2623, 2.8809),
        ((14, 14), 16, 1.5616, 3.0997),
        ((16, 16), 9, 1.2743, 3.1708),
        ((14, 20), 4, 0.9956, 3.1268),
    ],
    ids=str,
)
def test_gated_attention_starts_as_local_as_computed(grid, heads, position, blend):
    layer, count = GatedPositionalAttention(heads * 4, heads), grid[0] * grid[1]
    layer.init_local(1.0)
    with torch.no_grad():
        where = layer.positional_map(grid)
        flat = torch.full((1, heads, count, count), 1 / count)
        for values, expected in ((where[None], position), (layer.blend(flat, where), blend)):
            assert float(non_locality(record(values, grid)).mean()) == pytest.approx(expected, abs=1e-4)


def test_attention_to_itself_has_no_distance_and_class_tokens_are_left_out():
    assert torch.equal(non_locality(record(torch.eye(6)[None, None], (2, 3))), torch.zeros(1))
    values = torch.eye(7)[None, None] * 0.25
    values[..., 0] += 0.75  # most of it to the class token
    assert torch.equal(non_locality(record(values, (2, 3), "self", 1)), torch.zeros(1))
    assert distances((2, 3))[0, 5] == pytest.approx(5**0.5)


def test_legacy_non_locality_is_that_of_the_raw_embedding():
    """Transcribed: attention of x = patch_embed(images) in every layer, averaged over the batch, times distances."""
    model = create_model("convit_tiny", depth=4, num_gpsa=2).eval().backbone
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        legacy = legacy_non_locality(model, images)
        x = model.patch_embed(images).flatten(2).transpose(1, 2)
        for i, block in enumerate(model.blocks):
            if i < 2:
                q, k = block.attn.qk(x).reshape(2, 16, 2, 4, 48).permute(2, 0, 3, 1, 4)
                content = ((q @ k.transpose(-2, -1)) * 48**-0.5).softmax(-1)
                gate = torch.sigmoid(block.attn.gating_param).view(1, -1, 1, 1)
                attn = (1 - gate) * content + gate * block.attn.positional_map((4, 4))[None]
                attn = attn / attn.sum(-1).unsqueeze(-1)
            else:
                q, k, _ = block.attn.qkv(x).reshape(2, 16, 3, 4, 48).permute(2, 0, 3, 1, 4)
                attn = ((q @ k.transpose(-2, -1)) * 48**-0.5).softmax(-1)
            expected = torch.einsum("nm,hnm->h", distances((4, 4)), attn.mean(0)) / 16
            torch.testing.assert_close(legacy[i], expected)
        records = model.attention(images, kinds=["gated", "self"])
        assert not torch.allclose(legacy, torch.stack([non_locality(r) for r in records]), atol=1e-4)


def full_rollout(maps, prefix):
    """The product of all matrices, the class token joined with a unit row where it joins."""
    total = None
    for values in maps:
        attn = values.mean(1).double()
        attn = (attn + torch.eye(attn.shape[-1])) / 2
        attn = attn / attn.sum(-1, keepdim=True)
        if total is not None and attn.shape[-1] > total.shape[-1]:
            joined = torch.eye(attn.shape[-1], dtype=torch.double).repeat(len(attn), 1, 1)
            joined[:, prefix:, prefix:] = total
            total = joined
        total = attn if total is None else attn @ total
    return total[:, 0, prefix:]


@pytest.mark.parametrize(
    ("name", "prefix"), [("convit_tiny", 1), ("deit_tiny", 1), ("deit_tiny_distilled", 2)]
)
def test_rollout_is_the_full_product(name, prefix):
    options = {"depth": 4, "num_gpsa": 2} if name == "convit_tiny" else {"depth": 3}
    model = create_model(name, **options).eval().backbone
    kinds = [kind for kind in ("gated", "self") if kind in model.attention_kinds]
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
        records = model.attention(torch.randn(2, 3, 64, 96), kinds=kinds)
    result = rollout(records)
    assert result.shape == (2, 4, 6)
    torch.testing.assert_close(result.flatten(1).double(), full_rollout([r.values for r in records], prefix))
    assert not torch.allclose(rollout(records, heads="max"), result)
    assert not torch.allclose(rollout(records, discard=0.5), result)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("convit_tiny", {"depth": 3, "num_gpsa": 2}),
        ("convit_tiny", {"depth": 3, "num_gpsa": 1, "gate": "psa"}),
        ("convit_tiny", {"depth": 2, "num_gpsa": 0}),
        ("deit_tiny_distilled", {"depth": 2}),
    ],
)
def test_some_queries_at_a_time_give_what_all_at_once_give(name, options, monkeypatch):
    model = create_model(name, **options).eval().backbone
    kinds = [kind for kind in ("gated", "self") if kind in model.attention_kinds]
    images, counts = torch.randn(2, 3, 64, 96), []
    monkeypatch.setattr(attention, "PART_BYTES", 4 * 4 * 26 * 7)  # 7 queries of 4 heads and 26 tokens

    def layers():
        for layer in model.token_attention(images):
            rows = layer.rows
            yield replace(layer, rows=lambda i, j, rows=rows: counts.append(j - i) or rows(i, j))

    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
        records = model.attention(images, kinds=kinds)
        for one, whole in zip(layers(), records, strict=True):
            assert (one.kind, one.layer, one.grid, one.prefix) == (
                whole.kind,
                whole.layer,
                whole.grid,
                whole.prefix,
            )
            torch.testing.assert_close(one.rows(0, whole.values.shape[2]), whole.values)
            counts.clear()
            torch.testing.assert_close(non_locality(one), non_locality(whole))
            assert len(counts) > 2
        counts.clear()
        torch.testing.assert_close(rollout(layers()), rollout(records))
        assert max(counts) <= 10  # 3 heads in place of 4
        for option in ({"heads": "min"}, {"discard": 0.3}):
            torch.testing.assert_close(rollout(layers(), **option), rollout(records, **option))


def test_windows_have_no_attention_among_all_tokens():
    message = r"^SVT has no layers in which all tokens attend to all tokens\.$"
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        create_model("twins_svt_small").backbone.token_attention(torch.empty(1, 3, 64, 64))


def test_what_has_no_rollout_is_refused():
    windows = record(torch.ones(1, 1, 1, 4, 4) / 4, (2, 2), "window")
    message = r"^Rollout is for layers of plain attention that end with a class token; got kinds window\.$"
    with pytest.raises(ValueError, match=message):
        rollout([windows])
    with pytest.raises(ValueError, match=r"^discard is a share in \[0, 1\); got 1\.$"):
        rollout([windows], discard=1)
    with pytest.raises(
        ValueError, match=r"^Non-locality is for attention among patches of one grid; got kind 'window'\.$"
    ):
        non_locality(windows)


@pytest.mark.parametrize("percent", [60, 25])
def test_the_mass_mask_is_the_authors(percent):
    values = torch.from_numpy(inputs.attention()).view(3, 5, 7)
    assert torch.equal(mass_mask(values, percent / 100), golden(f"mask_keep{percent}").bool())


def test_the_mass_mask_keeps_the_fewest_patches():
    values = torch.tensor([[[0.1, 0.4], [0.2, 0.3]], [[0.05, 0.05], [0.1, 0.8]]])
    assert mass_mask(values, 0.6).tolist() == [
        [[False, True], [False, True]],
        [[False, False], [False, True]],
    ]
    assert mass_mask(values, 0.75).tolist()[0] == [[False, True], [True, True]]
    assert mass_mask(values, 1).all()
    assert torch.equal(mass_mask(7 * values, 0.6), mass_mask(values, 0.6))
    with pytest.raises(ValueError, match=r"^share is in \(0, 1\]; got 0\.$"):
        mass_mask(values, 0)


def test_positional_heads_start_where_they_are_put():
    layer = GatedPositionalAttention(36, 9)
    layer.init_local(2.0)
    centre, strength, deviation = positional_heads(layer.pos_proj.weight.detach())
    assert sorted(map(tuple, centre.tolist())) == [
        (float(x), float(y)) for x in (-1, 0, 1) for y in (-1, 0, 1)
    ]
    torch.testing.assert_close(strength, torch.full((9,), 2.0))
    torch.testing.assert_close(deviation, torch.full((9,), 0.5))
    centre, strength, deviation = positional_heads(torch.tensor([[1.0, 2.0, 0.5]]))
    assert centre.isnan().all()
    assert deviation.isnan().all()
    assert strength.item() == -0.5
