"""Options for the papers' ablations: what each changes, what it leaves, what it refuses."""

import math

import pytest
import torch
from torch.nn import functional as F

from tetravit.backbones.convit import ConViT, GatedPositionalAttention, PositionalAttention
from tetravit.backbones.twins import GlobalAttention
from tetravit.backbones.xcit import CrossCovarianceAttention, XCiT
from tetravit.models import create_backbone, create_model
from tetravit.recipe import find, load
from tetravit.weights.xcit import LAYOUTS

CONVIT = {"patch_size": 8, "dim": 32, "depth": 3, "num_heads": 4, "num_gpsa": 2, "image_size": 32}
XCIT = {"dim": 32, "depth": 2, "num_heads": 4}
TWINS = {"dims": (8, 16), "depths": (2, 2), "num_heads": (1, 2), "mlp_ratios": (2, 2), "sr_ratios": (4, 2)}
TWINS |= {"pattern": ("LG", "LG")}

OPTIONS = [
    ("convit_tiny", {"gate": "frozen"}),
    ("convit_tiny", {"gate": "psa"}),
    ("convit_tiny", {"gate": "psa", "local_init": False}),
    ("convit_tiny", {"gate": "frozen", "freeze_gpsa": True}),
    ("convit_tiny", {"num_gpsa": 0}),
    ("xcit_nano_12_p16", {"stem": "linear"}),
    ("xcit_nano_12_p16", {"stem": "linear", "patch_size": 4}),
    ("xcit_nano_12_p16", {"lpi": False}),
    ("xcit_nano_12_p16", {"xca": False}),
    ("xcit_nano_12_p16", {"l2_norm": False}),
    ("xcit_nano_12_p16", {"temperature": "fixed"}),
    ("twins_svt_small", {"subsampling": "separable"}),
    ("twins_svt_small", {"subsampling": "average"}),
]
SMALL = {"convit_tiny": CONVIT, "xcit_nano_12_p16": XCIT, "twins_svt_small": TWINS}


def model(name, options):
    torch.manual_seed(0)
    return create_model(name, num_classes=5, **{**SMALL[name], **options})


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_what_is_trained_gets_a_gradient_and_the_rest_stays(name, options):
    net = model(name, options)
    net(torch.randn(2, 3, 32, 32)).square().sum().backward()
    for key, parameter in net.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, key
    frozen = {key.rpartition(".")[2] for key, p in net.named_parameters() if not p.requires_grad}
    assert frozen <= {"gating_param", "temperature", "weight", "bias"}
    assert bool(frozen) == (options.get("gate") == "frozen" or options.get("temperature") == "fixed")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [row for row in OPTIONS if not {"gate": "frozen", "temperature": "fixed"}.items() & row[1].items()],
)
def test_a_graph_of_it_gives_the_same_logits(name, options):
    net, images = model(name, options).eval(), torch.randn(2, 3, 32, 32)
    program = torch.export.export(net, (images,))
    with torch.no_grad():
        torch.testing.assert_close(program.module()(images), net(images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_maps_attention_and_a_copy_by_its_state_dict(name, options):
    net, images = model(name, options).eval(), torch.randn(1, 3, 48, 32)
    with torch.no_grad():
        maps = net.backbone.feature_maps(images)
        records = net.backbone.attention(images)
    assert [m.shape[1] for m in maps] == list(net.backbone.channels)
    assert {record.kind for record in records} == set(net.backbone.attention_kinds)
    for record in records:
        assert record.values.isfinite().all()
    other = create_model(name, num_classes=5, weights=net.state_dict(), **{**SMALL[name], **options}).eval()
    with torch.no_grad():
        assert torch.equal(other(images), net(images))


def test_positional_attention_is_one_softmax_of_both_scores():
    layer, grid = PositionalAttention(16, 4).double(), (3, 5)
    layer.init_local(0.5)
    x = torch.randn(2, 15, 16, dtype=torch.double)
    q, k = layer.qk(x).view(2, 15, 2, 4, 4).permute(2, 0, 3, 1, 4)
    v = layer.v(x).view(2, 15, 4, 4).transpose(1, 2)
    place = torch.cartesian_prod(torch.arange(3.0), torch.arange(5.0)).double()
    dy, dx = (place[None] - place[:, None]).unbind(-1)
    a, b, c = layer.pos_proj.weight.T[:, :, None, None]
    position = a * dx + b * dy + c * (dx**2 + dy**2)
    weights = (q @ k.mT / math.sqrt(4) + position).softmax(-1)
    torch.testing.assert_close(layer.attention(x, grid), weights)
    torch.testing.assert_close(layer(x, grid), layer.proj((weights @ v).transpose(1, 2).flatten(2)))


def test_gates_are_frozen_at_one_half_and_absent_without_a_gate():
    frozen = ConViT(gate="frozen", **CONVIT)
    assert (frozen.gates() == 0.5).all()
    assert frozen.blocks[0].attn.qk.weight.requires_grad
    assert ConViT(gate="psa", **CONVIT).gates().shape == (0, 0)
    assert not [key for key in ConViT(gate="psa", **CONVIT).state_dict() if "gating" in key]


def test_a_random_start_has_no_convolution_in_it():
    free = ConViT(local_init=False, **CONVIT).blocks[1].attn
    assert 0.01 < free.v.weight.std() < 0.03
    assert free.pos_proj.weight.abs().max() < 0.2
    assert (free.pos_proj.bias == 0).all()
    assert (free.gating_param == 1).all()


def test_frozen_attention_keeps_its_convolution_while_the_rest_trains():
    net = ConViT(freeze_gpsa=True, **CONVIT)
    frozen = {key.rpartition(".attn")[0] for key, p in net.named_parameters() if not p.requires_grad}
    assert frozen == {"blocks.0", "blocks.1"}
    assert all(p.requires_grad for p in net.blocks[0].mlp.parameters())
    assert all(p.requires_grad for p in net.blocks[2].parameters())


def test_the_linear_stem_is_a_map_of_each_patch_centred_on_it():
    net = XCiT(stem="linear", **XCIT)
    assert (net.centre(16), XCiT(**XCIT).centre(16)) == (7.5, 0.0)
    images = torch.randn(1, 3, 32, 48)
    by_hand = F.linear(
        F.unfold(images, 16, stride=16).mT, net.patch_embed.weight.flatten(1), net.patch_embed.bias
    )
    torch.testing.assert_close(net.patch_embed(images).flatten(2).mT, by_hand)
    ours = {f"backbone.{key}": value for key, value in net.state_dict().items()}
    theirs = LAYOUTS["xcit"]["official"].to_theirs(ours)
    assert {"patch_embed.proj.weight", "patch_embed.proj.bias"} <= theirs.keys()
    records = net.eval().attention(images, kinds=["class"])
    assert {record.centre for record in records} == {7.5}


def test_what_is_left_out_has_no_parameters():
    whole = XCiT(**XCIT).state_dict().keys()
    for option, gone in (("xca", ("attn", "norm1", "gamma1")), ("lpi", ("local", "norm3", "gamma3"))):
        without = XCiT(**{option: False}, **XCIT).state_dict().keys()
        assert without == {
            key for key in whole if not (key.startswith("blocks") and key.split(".")[2] in gone)
        }


def test_without_unit_length_the_products_are_those_of_queries_and_keys():
    for many in (None, True):
        layer = CrossCovarianceAttention(16, 4, l2_norm=False).double()
        layer.many = many
        torch.nn.init.normal_(layer.temperature)
        x = torch.randn(2, 600, 16, dtype=torch.double) / 10
        q, k, v = layer.qkv(x).view(2, 600, 3, 4, 4).permute(2, 0, 3, 4, 1)  # (B, heads, D, N)
        weights = (layer.temperature * (q @ k.mT)).softmax(-1)
        torch.testing.assert_close(layer.attention(x), weights, atol=1e-6, rtol=1e-5)
        expected = layer.proj((weights @ v).permute(0, 3, 1, 2).flatten(2))
        torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)


def test_summaries_of_tiles():
    x = torch.randn(2, 9, 8, 16)
    mean = GlobalAttention(16, 2, 4, "average")
    torch.testing.assert_close(mean.sr(x)[:, 1, 0], x[:, 4:8, :4].mean(dim=(1, 2)))
    assert not list(mean.sr.parameters())
    separable = GlobalAttention(16, 2, 4, "separable")
    kernel = separable.sr.depthwise.weight[:, 0].permute(1, 2, 0)  # (4, 4, C)
    tile = (x[:, :4, 4:8] * kernel).sum(dim=(1, 2)) + separable.sr.depthwise.bias
    torch.testing.assert_close(separable.sr(x)[:, 0, 1], separable.sr.pointwise(tile))
    assert separable.sr(x).shape == mean.sr(x).shape == (2, 2, 2, 16)


@pytest.mark.parametrize(
    ("name", "option", "message"),
    [
        ("convit_tiny", {"gate": "froze"}, "gate takes one of learned, frozen, psa; got 'froze'."),
        ("convit_tiny", {"local_init": "no"}, "local_init is true or false; got 'no'."),
        ("convit_tiny", {"freeze_gpsa": 1}, "freeze_gpsa is true or false; got 1."),
        (
            "convit_tiny",
            {"locality_strength": "none"},
            "locality_strength is a number from 0 up; local_init=False starts at random; got 'none'.",
        ),
        ("xcit_nano_12_p16", {"stem": "patch"}, "stem takes one of conv, linear; got 'patch'."),
        ("xcit_nano_12_p16", {"lpi": "off"}, "lpi is true or false; got 'off'."),
        ("xcit_nano_12_p16", {"xca": 0}, "xca is true or false; got 0."),
        ("xcit_nano_12_p16", {"l2_norm": "yes"}, "l2_norm is true or false; got 'yes'."),
        ("xcit_nano_12_p16", {"temperature": 2}, "temperature takes one of learned, fixed; got 2."),
        (
            "twins_svt_small",
            {"subsampling": "max"},
            "subsampling takes one of conv, separable, average; got 'max'.",
        ),
        ("xcit_nano_12_p16", {"gate": "psa"}, "xcit_nano_12_p16 has no option 'gate'."),
    ],
)
def test_values_that_are_none(name, option, message):
    with pytest.raises(ValueError) as error:
        create_backbone(name, **option)
    assert str(error.value) == message


def test_recipes_take_them():
    recipe = load(
        find("convit/imagenet"),
        ["model.options.gate=frozen", "model.options.local_init=false", "data.root=x"],
    )
    assert recipe.model.options == {"gate": "frozen", "local_init": False}
    assert isinstance(ConViT(**recipe.model.options, **CONVIT).blocks[0].attn, GatedPositionalAttention)
