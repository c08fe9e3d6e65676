"""Properties of every backbone. A new family is tested once it has VARIANTS; see tests/families.py."""

import copy
import inspect
import json
import pickle
import re
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.families import SMALLEST, narrow, narrow_options, shallow
from torch.nn import functional as F

from tetravit.backbones import ALIASES, VARIANTS, Backbone
from tetravit.benchmark.flops import MODELS, count, description, paper_size, table
from tetravit.layers.drop_path import DropPath
from tetravit.models import create_backbone, create_model, list_models, resolve

PYRAMID = (4, 8, 16, 32)
# Families whose maps drop a remainder of the image, and those that pad it; a new family may do either.
CUT_OFF, PADDED = {"twins"}, {"convit", "deit", "gcvit", "xcit"}


@cache
def on_meta(name: str, **options: object) -> Backbone:
    """Shapes only: every size of every family in seconds, without memory."""
    with torch.device("meta"):
        return create_model(name, **options).backbone.eval()


EVERY = [pytest.param(name, marks=() if name in SMALLEST else pytest.mark.slow) for name in VARIANTS]


@pytest.fixture(scope="module", params=SMALLEST)
def small(request) -> Backbone:
    torch.manual_seed(0)
    return narrow(request.param).eval()


@pytest.mark.parametrize("name", EVERY)
def test_maps_and_embeddings_have_the_promised_shapes(name):
    model = on_meta(name)
    images = torch.empty(2, 3, 224, 224, device="meta")
    for got, channels, stride in zip(model.feature_maps(images), model.channels, model.strides, strict=True):
        assert got.shape == (2, channels, 224 // stride, 224 // stride)
    embeddings = model.embeddings(images)
    assert [embedding.shape for embedding in embeddings] == [(2, model.embed_dim)] * model.num_embeddings


@pytest.mark.parametrize("name", SMALLEST)
def test_tokens_are_pooled_to_one_embedding(name):
    model = on_meta(name)
    features = model.forward_features(torch.empty(2, 3, 64, 64, device="meta"))
    assert features.ndim == 3
    assert features.shape[::2] == (2, model.embed_dim)
    assert model.pool(features).shape == (2, model.embed_dim)


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_rectangles_give_a_pyramid_of_four_levels(name):
    with torch.device("meta"):
        model = create_backbone(name).eval()
        maps = model(torch.empty(1, 3, 256, 384))
    assert model.strides == PYRAMID
    assert [m.shape for m in maps] == [
        (1, c, 256 // s, 384 // s) for c, s in zip(model.channels, PYRAMID, strict=True)
    ]


@pytest.mark.parametrize("name", VARIANTS)
def test_constructors_take_the_common_options_by_name(name):
    parameters = inspect.signature(VARIANTS[name].func).parameters
    assert {"image_size", "in_chans", "drop_path"} <= parameters.keys()
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters.values())
    assert issubclass(VARIANTS[name].func, Backbone)


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_other_channels_and_image_sizes(name):
    model = on_meta(name, in_chans=1, image_size=(192, 256), drop_path=0.1)
    assert model(torch.empty(2, 1, 192, 256, device="meta")).shape == (2, model.embed_dim)


@pytest.mark.parametrize("name", VARIANTS)
def test_names_of_undecayed_parameters_exist(name):
    model = on_meta(name)
    assert model.no_weight_decay() <= dict(model.named_parameters()).keys()


@pytest.mark.parametrize("name", VARIANTS)
def test_stages_hold_every_parameter_once(name):
    model = on_meta(name)
    staged = [id(p) for group in model.stages() for module in group for p in module.parameters()]
    inside = {id(p) for module in model.children() for p in module.parameters()}
    assert len(staged) == len(set(staged))
    assert set(staged) == inside


@pytest.mark.parametrize("name", VARIANTS)
def test_the_table_of_counts_has_the_right_parameters(name):
    model = on_meta(name)
    head = model.num_embeddings * 1000 * (model.embed_dim + 1)
    assert table()[name].params == sum(p.numel() for p in model.parameters()) + head
    assert table()[name].image_size == paper_size(name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [n if n in SMALLEST else pytest.param(n, marks=pytest.mark.nightly) for n in VARIANTS]
)
def test_the_table_of_counts_has_the_right_multiply_adds(name):
    assert table()[name] == count(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_the_table_of_models_describes_them(name):
    assert json.loads(MODELS.read_text())[name] == description(name)


def test_the_tables_have_no_other_models():
    assert list(table()) == list(json.loads(MODELS.read_text())) == list_models()


@pytest.mark.parametrize("alias", ALIASES)
def test_aliases_resolve_to_models(alias):
    assert resolve(alias) in VARIANTS
    assert alias not in VARIANTS


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(
        ValueError, match=r"^Unknown model 'xcit_nano_p16'\. Did you mean 'xcit_nano_12_p16'\?$"
    ):
        resolve("xcit_nano_p16")


def test_every_parameter_gets_a_gradient(small):
    model = copy.deepcopy(small).train()
    images = torch.randn(2, 3, 64, 96)
    (model(images).square().sum() + sum(m.square().sum() for m in model.feature_maps(images))).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_evaluation_repeats_itself_to_the_bit(small):
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(small(images), small(images))
        first, second = small.feature_maps(images), small.feature_maps(images)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("size", [(64, 96), (80, 105)], ids=str)
def test_an_image_is_worth_the_same_alone_and_in_a_batch(small, size):
    images = torch.randn(3, 3, *size)
    with torch.no_grad():
        alone = torch.cat([small(image[None]) for image in images])
        torch.testing.assert_close(small(images), alone, atol=1e-5, rtol=1e-4)


def test_the_size_may_change_from_call_to_call(small):
    """What a call leaves behind must not change the next one."""
    first, second = torch.randn(1, 3, 64, 64), torch.randn(1, 3, 96, 160)
    fresh = copy.deepcopy(small)
    with torch.no_grad():
        expected = fresh(second)
        small(first)
        assert torch.equal(small(second), expected)


def test_copies_and_pickles_answer_alike(small):
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = small(images)
        for twin in (copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
            assert torch.equal(twin(images), expected)


def test_channels_last_images_and_weights_answer_alike(small):
    images = torch.randn(2, 3, 64, 96)
    last = copy.deepcopy(small).to(memory_format=torch.channels_last)
    with torch.no_grad():
        found = last(images.contiguous(memory_format=torch.channels_last))
        torch.testing.assert_close(found, small(images), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_models_stay_close(small, dtype):
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        low = copy.deepcopy(small).to(dtype)(images.to(dtype))
        assert low.dtype == dtype
        assert F.cosine_similarity(low.float(), small(images)).min() > 0.99


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_autocast_stays_close(small, mode):
    model, images = copy.deepcopy(small).train(mode == "train"), torch.randn(2, 3, 64, 64)
    expected = model(images)
    with torch.autocast("cpu", torch.bfloat16):
        low = model(images).float()
    assert F.cosine_similarity(low, expected).min() > 0.99


@pytest.mark.parametrize("name", SMALLEST)
def test_a_model_built_on_the_meta_device_answers_once_loaded(name):
    small = narrow(name).eval()
    with torch.device("meta"):
        loaded = narrow(name).eval()
    loaded.to_empty(device="cpu")
    loaded.load_state_dict(small.state_dict())
    images = torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        assert torch.equal(loaded(images), small(images))


def test_checkpointed_blocks_give_the_same_gradients(small):
    images = torch.randn(1, 3, 64, 64)
    gradients = []
    for mode in (False, True):
        model = copy.deepcopy(small).train()
        model.set_grad_checkpointing(mode)
        model(images).square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_frozen_stages_stay_as_they_are(small):
    model = copy.deepcopy(small)
    model.freeze(2)
    model.train()
    frozen = [module for group in model.stages()[:2] for module in group]
    assert not any(p.requires_grad for module in frozen for p in module.parameters())
    assert not any(module.training for module in frozen)
    assert any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(3, 64, 64), r"^images must be \(B, 3, Hi, Wi\); got \(3, 64, 64\)\.$"),
        (torch.zeros(1, 1, 64, 64), r"^images must be \(B, 3, Hi, Wi\); got \(1, 1, 64, 64\)\.$"),
        (
            torch.zeros(1, 3, 64, 64, dtype=torch.uint8),
            r"^images must be float, normalized; got torch\.uint8\. Use model\.preprocess\.$",
        ),
        (torch.zeros(1, 3, 31, 64), r"^images must be at least 32 pixels high and wide; got 31 x 64\.$"),
    ],
    ids=["rank", "channels", "integers", "small"],
)
def test_what_no_backbone_can_read_is_refused(small, images, message):
    for call in (small, small.forward_features, small.feature_maps):
        with pytest.raises(ValueError, match=message):
            call(images)


@pytest.mark.parametrize("size", [31, 0, -1, (224,), (224, 16), 224.0, float("nan"), "224", True])
@pytest.mark.parametrize("name", SMALLEST)
def test_an_impossible_image_size_is_refused(name, size):
    message = f"image_size is a side in pixels from 32 up, or (height, width); got {size!r}."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        create_model(name, image_size=size)


def rows(backbone: Backbone, side: int, stride: int) -> set[int]:
    """The numbers of rows that a map of this stride may have for an image of this height."""
    name = type(backbone).__module__.rpartition(".")[2]
    down = set() if name in PADDED else {side // stride}
    up = set() if name in CUT_OFF else {-(-side // stride)}
    return down | up


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(height=st.integers(32, 150), width=st.integers(32, 150))
def test_any_size_gives_finite_maps_of_the_stated_shapes(small, height, width):
    images = torch.randn(1, 3, height, width)
    with torch.no_grad():
        maps, embedding = small.feature_maps(images), small(images)
    assert embedding.shape == (1, small.embed_dim)
    assert all(tensor.isfinite().all() for tensor in (embedding, *maps))
    for level, channels, stride in zip(maps, small.channels, small.strides, strict=True):
        assert level.shape[:2] == (1, channels)
        assert level.shape[2] in rows(small, height, stride)
        assert level.shape[3] in rows(small, width, stride)


@pytest.mark.slow  # 800 x 1333 pixels
@pytest.mark.parametrize("name", SMALLEST)
def test_a_detection_size_gives_finite_maps(name):
    backbone, images = create_backbone(name).eval(), torch.randn(1, 3, 800, 1333)
    with torch.no_grad():
        maps = backbone(images)
    assert all(level.isfinite().all() for level in maps)
    for level, stride in zip(maps, PYRAMID, strict=True):
        assert level.shape[2] == 800 // stride
        assert 1333 // stride <= level.shape[3] <= 1344 // stride  # cut off, or padded to whole patches


def test_the_pooled_features_are_the_embedding(small):
    """Where the last block is shortened for a class token, too."""
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        features = small.forward_features(images)
        torch.testing.assert_close(small.pool(features), small(images), atol=5e-6, rtol=0)


@pytest.mark.parametrize("size", [(64, 50), (75, 110)], ids=str)
@pytest.mark.parametrize("name", SMALLEST)
def test_every_parameter_that_makes_logits_gets_a_gradient(name, size):
    model = create_model(name, num_classes=5, drop_path=0.1, **narrow_options(name)).train()
    model(torch.randn(2, 3, *size)).square().mean().backward()
    assert [key for key, p in model.named_parameters() if p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", SMALLEST)
def test_stochastic_depth_is_linear_or_constant_up_to_drop_path(name):
    rates = [m.rate for m in on_meta(name, drop_path=0.22).modules() if isinstance(m, DropPath)]
    linear = [0.22 * i / (len(rates) - 1) for i in range(len(rates))]
    assert rates == pytest.approx(linear) or rates == [0.22] * len(rates)


@pytest.mark.slow
@pytest.mark.parametrize(
    "dynamic", [False, pytest.param(True, marks=pytest.mark.nightly)]
)  # minutes for windows of all sizes
@pytest.mark.parametrize("name", SMALLEST)
def test_compiled_without_graph_breaks(name, dynamic):
    torch.compiler.reset()
    model = shallow(name).eval()
    captured = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    with torch.no_grad():
        for size in ((2, 3, 64, 64), (1, 3, 72, 100), (2, 3, 224, 96)):
            images = torch.randn(*size)
            torch.testing.assert_close(captured(images), model(images), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", SMALLEST)
def test_a_drop_path_of_one_is_refused(name):
    with torch.device("meta"), pytest.raises(ValueError) as error:
        create_model(name, drop_path=1.0)
    assert str(error.value) == "drop_path is a probability in [0, 1); got 1.0."
