"""Attention maps and patch features of every family: one method each, whatever the family attends with."""

import copy
import re

import pytest
import torch

from tetravit.backbones import VARIANTS
from tetravit.models import create_model, family

NAMES = (
    "convit_tiny",
    "deit_tiny",
    "deit_tiny_distilled",
    "gcvit_xxtiny",
    "twins_pcpvt_small",
    "twins_svt_small",
    "xcit_nano_12_p16",
)
CENTRES = {"xcit": 0.0, "gcvit": 0.0}  # others: the middle of a patch


@pytest.fixture(scope="module", params=NAMES)
def small(request):
    torch.manual_seed(0)
    model = create_model(request.param).backbone.eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.02 * torch.randn_like(p))
    model.name = request.param
    return model


@pytest.fixture(scope="module")
def records(small):
    with torch.no_grad():
        return small.attention(torch.randn(2, 3, 64, 96))


def test_the_names_are_of_all_families():
    assert {family(name) for name in NAMES} == {family(name) for name in VARIANTS}


@pytest.mark.slow
def test_every_layer_has_its_record_in_order_of_depth(small, records):
    modules = [name for name, _ in small.named_modules() if name.endswith(".attn")]
    assert list(dict.fromkeys(record.layer for record in records)) == modules
    assert {record.kind for record in records} == set(small.attention_kinds)


def test_weights_are_distributions(records):
    for record in records:
        assert record.values.dtype == torch.float32
        if record.kind == "class":
            assert record.values.shape[2:] == record.grid
            torch.testing.assert_close(record.values.sum(dim=(-2, -1)), record.seen)
        else:
            assert record.seen.shape == record.values.shape[:-1]
            torch.testing.assert_close(record.values.sum(-1), torch.ones_like(record.seen))
        assert (record.values >= 0).all()
        assert ((record.seen > 0) & (record.seen < 1 + 1e-5)).all()


def test_queries_sum_to_what_is_seen_of_the_image(records):
    for record in (r for r in records if r.kind not in ("class", "channel")):
        height, width = record.query_grid or record.grid
        for row, column in ((0, 0), (height - 1, width - 1)):
            weights = record.query(row, column)
            assert weights.shape == (record.values.shape[0], record.seen.shape[-2], *record.grid)
            side = round(record.values.shape[-1] ** 0.5)
            if record.windows is not None:
                window = row // side * record.windows[1] + column // side
                seen = record.seen[:, window, :, row % side * side + column % side]
            else:
                seen = record.seen[:, :, record.prefix + row * width + column]
            torch.testing.assert_close(weights.sum(dim=(-2, -1)), seen, atol=1e-5, rtol=1e-4)


def test_means_over_queries_are_the_mean_of_all_queries(records):
    """Of windows: that of the queries in the window of the key."""
    for record in (r for r in records if r.kind in ("self", "gated", "content", "summary", "window")):
        mean, (height, width) = record.mean_over_queries(), record.query_grid or record.grid
        if height * width > 100:
            continue
        places = [(row, column) for row in range(height) for column in range(width)]
        rows = torch.stack([record.query(*place) for place in places])
        if record.windows is None:
            torch.testing.assert_close(mean, rows.mean(0))
            continue
        side = round(record.values.shape[-1] ** 0.5)
        own = torch.tensor(
            [[(a // side, b // side) == (i // side, j // side) for i, j in places] for a, b in places]
        )
        keys = torch.stack([(rows * own[:, i, None, None, None, None]).sum(0) for i in range(len(places))])
        expected = torch.stack(
            [keys[i].flatten(2)[..., i] / own[:, i].sum() for i in range(len(places))], dim=-1
        )
        torch.testing.assert_close(mean.flatten(2), expected)


def test_keys_lie_where_the_family_says(small, records):
    """3 x 3 convolutions of stride 2 centre their output i on input 2 i, patches of side s on s i + (s - 1) / 2."""
    for record in (r for r in records if r.kind != "channel"):
        assert record.centre == CENTRES.get(family(small.name), (record.stride - 1) / 2)
        for side, count in zip((64, 96), record.grid, strict=True):
            assert count == -(-side // record.stride)


def test_kinds_choose(small):
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for kind in small.attention_kinds:
            assert {record.kind for record in small.attention(images, kinds=[kind])} == {kind}
        assert small.attention(images, kinds=[]) == []
    wrong = f"{type(small).__name__} has attention of kind {', '.join(small.attention_kinds)}; got 'other'."
    with pytest.raises(ValueError, match=f"^{re.escape(wrong)}$"):
        small.attention(images, kinds=["other"])


def test_records_refuse_what_they_do_not_have(records):
    for record in records:
        if record.kind == "channel":
            with pytest.raises(
                ValueError, match=r"^Attention between channels has no places; use `values`\.$"
            ):
                record.mean_over_queries()
        if record.kind in ("class", "channel"):
            with pytest.raises(ValueError, match=r"has no queries with a place; use `values`\.$"):
                record.query(0, 0)
        else:
            grid = re.escape(str(record.query_grid or record.grid))
            with pytest.raises(ValueError, match=rf"^A query of {record.layer} is in a grid of {grid}; got "):
                record.query(99, 0)
        if record.prefix == 0 and record.kind != "class":
            with pytest.raises(ValueError, match=f"^No class token attends in {record.layer}\\.$"):
                record.class_row()


def test_class_rows_are_those_of_all_tokens(records):
    rows = {r.layer: r for r in records if r.kind == "class"}
    for record in (r for r in records if r.kind == "self"):
        assert torch.equal(record.class_row(), rows[record.layer].class_row())


@pytest.mark.parametrize("size", [(64, 96), (70, 50), (33, 100)], ids=str)
def test_patch_features_are_the_normed_tokens_on_their_grid(small, size):
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        features, patches = small.forward_features(images), small.patch_features(images)
    assert patches.shape == (2, small.embed_dim, *small.grid(*size))
    assert patches.shape[2:] == small.feature_maps(images)[-1].shape[2:]
    assert torch.equal(patches.flatten(2).mT, features[:, small.num_prefix :])


def test_attention_leaves_the_model_as_it_is(small):
    images = torch.randn(1, 3, 64, 64)
    twin = copy.deepcopy(small)
    with torch.no_grad():
        small.attention(images)
        assert torch.equal(small(images), twin(images))
