"""XCiT is the authors' model, at any size."""

import copy
import pickle

import pytest
import timm
import torch
from authors import golden
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from tetravit.backbones.xcit import ClassBlock, CrossCovarianceAttention, LocalPatchInteraction, XCiT
from tetravit.layers.position import FourierPosition
from tetravit.models import create_backbone, create_model
from tetravit.weights.xcit import LAYOUTS

OFFICIAL, TIMM = LAYOUTS["xcit"]["official"], LAYOUTS["xcit"]["timm"]
PARAMETERS = {
    "xcit_nano_12_p16": 3_053_224,
    "xcit_tiny_12_p16": 6_716_272,
    "xcit_tiny_24_p16": 12_116_896,
    "xcit_small_12_p16": 26_253_304,
    "xcit_small_24_p16": 47_671_384,
    "xcit_medium_24_p16": 84_395_752,
    "xcit_large_24_p16": 189_096_136,
    "xcit_nano_12_p8": 3_049_016,
    "xcit_tiny_12_p8": 6_706_504,
    "xcit_tiny_24_p8": 12_107_128,
    "xcit_small_12_p8": 26_213_032,
    "xcit_small_24_p8": 47_631_112,
    "xcit_medium_24_p8": 84_323_624,
    "xcit_large_24_p8": 188_932_648,
}


@pytest.fixture(scope="module")
def nano():
    """The nano model with the authors' tensors, in evaluation mode."""
    torch.manual_seed(0)
    model = create_model("xcit_nano_12_p16").eval()
    model.load_state_dict(OFFICIAL.to_ours(golden("xcit_nano_12_p16").state()))
    return model


@pytest.mark.parametrize("name", ["xcit_nano_12_p16", "xcit_tiny_12_p8"])
def test_answers_are_the_authors(name):
    authors = golden(name)
    model = create_model(name).eval()
    model.load_state_dict(OFFICIAL.to_ours(authors.state()))
    for size in authors.sizes:
        with torch.no_grad():
            embedding = model.backbone(authors.images(size))
            logits = model.head(embedding)
        torch.testing.assert_close(embedding, authors.answer("features", size), atol=5e-5, rtol=0)
        torch.testing.assert_close(logits, authors.answer("logits", size), atol=5e-5, rtol=0)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts_are_exact(name):
    with torch.device("meta"):
        model = create_model(name)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", ["xcit_nano_12_p16", "xcit_tiny_12_p8"])
def test_official_names_map_both_ways(name):
    authors = golden(name)
    ours = OFFICIAL.to_ours(authors.state())
    back = OFFICIAL.to_theirs(ours)
    assert back.keys() == authors.keys.keys()
    assert all(torch.equal(value, back[key]) for key, value in authors.state().items())
    assert ours.keys() == create_model(name).state_dict().keys()


def test_timm_state_loads_and_ours_exports_back():
    theirs = timm.create_model("xcit_nano_12_p16_224").eval()
    ours = create_model("xcit_nano_12_p16").eval()
    ours.load_state_dict(TIMM.to_ours(theirs.state_dict()))
    images = torch.randn(3, 3, 96, 160)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), atol=1e-5, rtol=0)
    back = TIMM.to_theirs(ours.state_dict())
    assert back.keys() == theirs.state_dict().keys()
    theirs.load_state_dict(back)


@settings(max_examples=12, deadline=None)
@given(height=st.integers(32, 150), width=st.integers(32, 150))
def test_any_size_gives_the_promised_maps(nano, height, width):
    images = torch.randn(1, 3, height, width)
    with torch.no_grad():
        maps = nano.feature_maps(images)
        assert torch.isfinite(nano(images)).all()
    assert [m.shape for m in maps] == [(1, 128, -(-height // 16), -(-width // 16))] * 4


def test_a_detection_size_works(nano):
    with torch.no_grad():
        assert torch.isfinite(nano(torch.randn(1, 3, 800, 1333))).all()


def test_an_answer_does_not_depend_on_batch_mates(nano):
    images = torch.randn(4, 3, 80, 112)
    with torch.no_grad():
        together = nano(images)
        alone = torch.cat([nano(image[None]) for image in images])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_the_class_token_shortcut_changes_nothing(nano):
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        features = nano.forward_features(images)
        assert features.shape == (2, 1 + 4 * 6, 128)
        torch.testing.assert_close(nano.backbone.pool(features), nano.backbone(images), atol=1e-6, rtol=0)


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


@pytest.mark.parametrize("name", ["xcit_nano_12_p16", "xcit_nano_12_p8"])
def test_every_parameter_that_makes_logits_gets_a_gradient(name):
    model = create_model(name, num_classes=5, drop_path=0.1).train()
    model(torch.randn(2, 3, 64, 64)).square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_checkpointing_gives_the_same_gradients(nano):
    model = copy.deepcopy(nano).train()
    images = torch.randn(2, 3, 64, 64)
    gradients = []
    for mode in (False, True):
        model.set_grad_checkpointing(mode)
        model.zero_grad()
        model(images).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_models_stay_close(nano, dtype):
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = nano(images)
        low = copy.deepcopy(nano).to(dtype)(images.to(dtype)).float()
    assert F.cosine_similarity(low, expected).min() > 0.99


def test_autocast_stays_close(nano):
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = nano(images)
        with torch.autocast("cpu", torch.bfloat16):
            low = nano(images).float()
    assert F.cosine_similarity(low, expected).min() > 0.99


def test_copies_pickles_and_channels_last_answer_the_same(nano):
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected = nano(images)
        assert torch.equal(copy.deepcopy(nano)(images), expected)
        assert torch.equal(pickle.loads(pickle.dumps(nano))(images), expected)
        last = copy.deepcopy(nano).to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(last(images), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(224, 224), (160, 96)])
def test_pyramid_has_strides_4_8_16_32(size):
    for name in ("xcit_nano_12_p16", "xcit_nano_12_p8"):
        backbone = create_backbone(name).eval()
        with torch.no_grad():
            maps = backbone(torch.randn(1, 3, *size))
        assert [m.shape[2:] for m in maps] == [(size[0] // s, size[1] // s) for s in backbone.strides]
        assert backbone.channels == (128,) * 4


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


@pytest.mark.slow
def test_captures_without_graph_breaks():
    model = create_model("xcit_nano_12_p16", depth=2).eval()
    captured = torch.compile(model, fullgraph=True, backend="aot_eager")
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(captured(images), model(images), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.randn(2, 4, 64, 64), "images must be (B, 3, Hi, Wi); got (2, 4, 64, 64)."),
        (torch.randn(3, 64, 64), "images must be (B, 3, Hi, Wi); got (3, 64, 64)."),
        (torch.randn(1, 3, 31, 64), "images must be at least 32 pixels high and wide; got 31 x 64."),
        (
            torch.zeros(1, 3, 64, 64, dtype=torch.uint8),
            "images must be float, normalized; got torch.uint8. Use model.preprocess.",
        ),
    ],
)
def test_images_it_cannot_read(nano, images, message):
    with pytest.raises(ValueError) as error:
        nano(images)
    assert str(error.value) == message


def test_arguments_it_cannot_take():
    for arguments, message in (
        ({"patch_size": 12}, "patch_size of XCiT is 8 or 16, or any with stem='linear'; got 12."),
        ({"dim": 100}, "dim must be a multiple of num_heads; got dim=100, num_heads=8."),
        ({"drop_path": 1.0}, "drop_path is a probability in [0, 1); got 1.0."),
    ):
        with pytest.raises(ValueError) as error:
            XCiT(**arguments)
        assert str(error.value) == message


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
