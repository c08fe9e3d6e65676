"""XCiT is the authors' model, at any size."""

import copy

import pytest
import torch
from authors import golden
from torch.nn import functional as F

from tetravit.backbones.xcit import ClassBlock, CrossCovarianceAttention, LocalPatchInteraction
from tetravit.layers.position import FourierPosition
from tetravit.models import create_model
from tetravit.weights.xcit import LAYOUTS

OFFICIAL, TIMM = LAYOUTS["xcit"]["official"], LAYOUTS["xcit"]["timm"]


@pytest.fixture(scope="module")
def nano():
    """The nano model with the authors' tensors, in evaluation mode."""
    torch.manual_seed(0)
    model = create_model("xcit_nano_12_p16").eval()
    model.load_state_dict(OFFICIAL.to_ours(golden("xcit_nano_12_p16").state()))
    return model


def test_cross_covariance_attention_is_the_written_formula():
    layer = CrossCovarianceAttention(32, num_heads=4).double()
    torch.nn.init.uniform_(layer.temperature, 0.5, 2.0)
    x = torch.randn(2, 10, 32, dtype=torch.double)
    q, k, v = (part.reshape(2, 10, 4, 8).permute(0, 2, 3, 1) for part in layer.qkv(x).chunk(3, dim=-1))
    attn = torch.einsum("bhin,bhjn->bhij", F.normalize(q, dim=-1), F.normalize(k, dim=-1)) * layer.temperature
    mixed = torch.einsum("bhij,bhjn->bnhi", attn.softmax(-1), v).reshape(2, 10, 32)
    torch.testing.assert_close(layer(x), layer.proj(mixed))


@pytest.mark.parametrize("norm_patches", [True, False])
def test_patches_pass_the_class_block_doubled(norm_patches):
    block = ClassBlock(16, 2, 0.5, norm_patches=norm_patches)
    token, patches = torch.randn(2, 1, 16), torch.randn(2, 6, 16)
    kept = patches + block.gamma1 * block.norm1(patches)
    _, out = block(token, patches)
    torch.testing.assert_close(out, 2 * (block.norm2(kept) if norm_patches else kept))


def test_fourier_positions_are_rows_first_and_relative_to_the_image():
    position = FourierPosition(8)
    waves = position.waves((3, 5)).unflatten(1, (3, 5))[0]
    assert torch.equal(waves[1, 0, :32], waves[1, 4, :32])  # the first half knows the row alone
    assert torch.equal(waves[0, 2, 32:], waves[2, 2, 32:])  # the second half the column alone
    angle = torch.tensor(2 * torch.pi * 2 / (3 + 1e-6))
    torch.testing.assert_close(waves[1, 0, :2], torch.stack((angle.sin(), angle.cos())))


def test_positions_follow_changed_weights(nano):
    model = copy.deepcopy(nano)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = model(images)
        model.backbone.pos_embed.proj.weight.mul_(2)
        assert not torch.allclose(before, model(images))


def test_class_attention_of_both_blocks_is_what_they_use(nano):
    """Values of the patches weighed by the map, and of the class token by the rest, are what the block reads."""
    inputs = []
    blocks = nano.backbone.class_blocks
    hooks = [b.attn.register_forward_hook(lambda _, args, out: inputs.append((*args, out))) for b in blocks]
    with torch.no_grad():
        nano(images := torch.randn(2, 3, 64, 96))
        for hook in hooks:
            hook.remove()
        records = nano.backbone.attention(images, kinds=["class"])
        assert [r.layer for r in records] == ["class_blocks.0.attn", "class_blocks.1.attn"]
        for record, block, (token, patches, expected) in zip(records, blocks, inputs, strict=True):
            attn = record.values.flatten(2)  # (B, heads, N)
            assert attn.shape == (2, 4, 24)
            torch.testing.assert_close(attn.sum(-1), record.seen)
            assert (record.seen < 1).all()
            weights = torch.cat((1 - record.seen[..., None], attn), dim=-1)[:, :, None]
            values = block.attn.kv(torch.cat((token, patches), dim=1))[..., 128:].unflatten(2, (4, 32))
            mixed = (weights @ values.transpose(1, 2)).transpose(1, 2).flatten(2)
            torch.testing.assert_close(block.attn.proj(mixed), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("size", [64, 256], ids=["few", "many"])
def test_channel_attention_is_the_plain_form_whatever_form_is_computed(size):
    model = create_model("xcit_nano_12_p8", num_classes=3, depth=2).eval().backbone
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        records = model.attention(images, kinds=["channel"])
        x, grid = model._embed(images)
        for record, block in zip(records, model.blocks, strict=True):
            q, k, _ = block.attn.qkv(block.norm1(x)).unflatten(2, (3, 4, -1)).permute(2, 0, 3, 4, 1)
            cosines = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT
            assert cosines.abs().max() <= 1 + 1e-5
            expected = (cosines * block.attn.temperature).softmax(-1)
            torch.testing.assert_close(record.values, expected, atol=1e-5, rtol=1e-4)
            assert torch.equal(record.temperature, block.attn.temperature.flatten())
            x = block(x, grid)


def test_freezing_keeps_statistics_and_weights():
    model = create_model("xcit_nano_12_p16", num_classes=3)
    model.backbone.freeze(3)
    model.train()
    frozen = [*model.backbone.patch_embed.parameters(), *model.backbone.blocks[1].parameters()]
    assert not any(p.requires_grad for p in frozen)
    assert model.backbone.blocks[2].norm1.weight.requires_grad
    assert not model.backbone.patch_embed[0][1].training
    before = model.backbone.patch_embed[0][1].running_mean.clone()
    model(torch.randn(2, 3, 64, 64))
    assert torch.equal(before, model.backbone.patch_embed[0][1].running_mean)


def test_grey_and_many_channelled_images():
    assert create_model("xcit_nano_12_p16", in_chans=5)(torch.randn(1, 5, 64, 64)).shape == (1, 1000)


@pytest.mark.parametrize("batch", [1, 2])
def test_neighbours_talk_without_another_layout(batch):
    """A lone image too: PyTorch takes the strides of some views of one image for another layout, and copies."""
    seen = []
    local = LocalPatchInteraction(8).eval()
    for conv in (local.conv1, local.conv2):
        conv.register_forward_hook(lambda _, x, y: seen.extend((x[0], y)))
    local(torch.randn(batch, 20, 8), (4, 5))
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in seen)
    assert not any(t.is_contiguous() for t in seen)
