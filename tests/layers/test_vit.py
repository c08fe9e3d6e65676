"""The pieces of a plain vision transformer are the written formulas, at any grid."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from tetravit.layers.vit import Block, ClassToken, LearnedPosition, PatchEmbed, SelfAttention


@settings(max_examples=10, deadline=None)
@given(height=st.integers(32, 80), width=st.integers(32, 80))
def test_patches_see_every_pixel(height, width):
    layer = PatchEmbed.of_size(3, 8, 16)
    images = torch.randn(1, 3, height, width, requires_grad=True)
    patches = layer(images)
    assert patches.shape == (1, 8, *layer.grid((height, width))) == (1, 8, -(-height // 16), -(-width // 16))
    patches.sum().backward()
    assert (images.grad != 0).all()


def test_sides_that_patches_divide_are_left_as_they_are():
    layer = PatchEmbed.of_size(3, 8, 16)
    images = torch.randn(2, 3, 64, 96)
    assert torch.equal(layer(images), F.conv2d(images, layer.weight, layer.bias, stride=16))


def test_other_sides_are_continued_with_zeros_right_and_below():
    layer = PatchEmbed.of_size(3, 8, 16)
    images = torch.randn(2, 3, 50, 37)
    assert torch.equal(layer(images), layer(F.pad(images, (0, 11, 0, 14))))


def test_a_patch_size_it_cannot_have():
    with pytest.raises(ValueError) as error:
        PatchEmbed.of_size(3, 8, 0)
    assert str(error.value) == "patch_size is 1 pixel or more; got 0."


@pytest.mark.parametrize("num_prefix", [0, 1])
@pytest.mark.parametrize("grid", [(14, 14), (3, 5), (24, 24)])
def test_positions_at_their_own_grid_are_untouched_to_the_bit(grid, num_prefix):
    position = LearnedPosition(6, grid, num_prefix)
    torch.nn.init.normal_(position.table)
    assert torch.equal(position(grid), position.table)
    with torch.no_grad():
        assert torch.equal(position(grid), position.table)


def test_positions_at_another_grid_keep_the_prefix_and_follow_the_image():
    position = LearnedPosition(2, (4, 6), num_prefix=1)
    with torch.no_grad():
        position.table[:, 0] = 7.0
        cells = position.table[:, 1:].unflatten(1, (4, 6))  # (1, H, W, C)
        cells[..., 0] = torch.arange(4.0)[:, None]
        cells[..., 1] = torch.arange(6.0)
        resized = position((8, 3))
    assert torch.equal(resized[:, 0], position.table[:, 0])
    rows, columns = resized[0, 1:].unflatten(0, (8, 3)).unbind(-1)
    assert (rows.diff(dim=0) > 0).all()
    torch.testing.assert_close(rows.diff(dim=1), torch.zeros(8, 2), atol=1e-5, rtol=0)
    torch.testing.assert_close(columns[:, 1], torch.full((8,), 2.5), atol=1e-5, rtol=0)


def test_positions_follow_changed_weights():
    position = LearnedPosition(2, (2, 2))
    with torch.no_grad():
        before = position((3, 4))
        position.table += 1
        torch.testing.assert_close(position((3, 4)), before + 1)


def test_a_table_of_another_square_grid_is_fitted():
    small, large = LearnedPosition(4, (3, 3), 1), LearnedPosition(4, (5, 7), 1)
    torch.nn.init.normal_(small.table)
    with torch.no_grad():
        fitted = large.fit(small.table)
        assert torch.equal(fitted, small((5, 7)))
        assert fitted.shape == large.table.shape
        assert torch.equal(small.fit(small.table), small.table)


def test_a_table_of_no_square_grid_is_refused():
    with pytest.raises(ValueError) as error:
        LearnedPosition(4, (3, 3), 1).fit(torch.zeros(1, 13, 4))
    assert str(error.value) == "A table of positions has n * n + 1 rows for a square grid; got 13."


def test_a_table_of_a_grid_that_is_known_is_fitted():
    wide, tall = LearnedPosition(4, (3, 5), 1), LearnedPosition(4, (5, 3), 1)
    torch.nn.init.normal_(wide.table)
    with torch.no_grad():
        assert torch.equal(tall.fit(wide.table, (3, 5)), wide((5, 3)))
    with pytest.raises(ValueError) as error:
        tall.fit(wide.table, (4, 5))
    assert str(error.value) == "A table of positions for 4 x 5 cells has 21 rows; got 16."


def test_the_class_token_comes_first():
    token = ClassToken(4)
    torch.nn.init.normal_(token.token)
    x = torch.randn(3, 5, 4)
    joined = token(x)
    assert torch.equal(joined[:, 1:], x)
    assert torch.equal(joined[:, :1], token.token.expand(3, 1, 4))


@pytest.mark.parametrize("qkv_bias", [True, False])
def test_self_attention_is_the_written_formula(qkv_bias):
    layer = SelfAttention(24, 3, qkv_bias=qkv_bias).double()
    x = torch.randn(2, 7, 24, dtype=torch.double)
    q, k, v = (part.reshape(2, 7, 3, 8).transpose(1, 2) for part in layer.qkv(x).chunk(3, dim=-1))
    attn = (torch.einsum("bhnd,bhmd->bhnm", q, k) / 8**0.5).softmax(-1)
    torch.testing.assert_close(layer.attention(x), attn)
    torch.testing.assert_close(layer(x), layer.proj((attn @ v).transpose(1, 2).reshape(2, 7, 24)))


@pytest.mark.parametrize("qkv_bias", [True, False])
def test_a_block_for_the_first_tokens_gives_their_rows_and_their_gradients(qkv_bias):
    block = Block(24, 3, qkv_bias=qkv_bias, drop_path=0.0).double()
    x = torch.randn(2, 7, 24, dtype=torch.double)
    gradients = []
    for out in (block(x)[:, :2], block(x, 2)):
        assert out.shape == (2, 2, 24)
        block.zero_grad()
        out.square().sum().backward()
        gradients.append([out, *(p.grad for p in block.parameters())])
    for full, short in zip(*gradients, strict=True):
        torch.testing.assert_close(full, short)


def test_heads_that_do_not_divide_the_width():
    with pytest.raises(ValueError) as error:
        SelfAttention(100, 3, qkv_bias=True)
    assert str(error.value) == "dim must be a multiple of num_heads; got dim=100, num_heads=3."
