"""Equal models have one fingerprint, other ones another, and what a hash cannot cover has none."""

import copy
import types

import pytest
import torch
from tests.families import narrow_options
from torch import nn

from tetravit.models import create_detector, create_model, create_segmenter
from tetravit.runtimes.parts.fingerprint import NoFingerprint, fingerprint, machine

NAME, SMALL = "xcit_nano_12_p16", {"depth": 1}


def build(name=NAME, **options):
    torch.manual_seed(0)
    return create_model(name, num_classes=3, image_size=64, **(SMALL | options)).eval()


@pytest.fixture(scope="module")
def known():
    return fingerprint(build())


def test_equal_models_have_one(known):
    model = build()
    model.requires_grad_(False)
    model(torch.zeros(1, 3, 64, 64))  # fills its tables
    assert fingerprint(model) == fingerprint(copy.deepcopy(model)) == known


@pytest.mark.parametrize(
    "name", ["convit_tiny", "gcvit_xxtiny", "twins_svt_small", "twins_pcpvt_small", "deit_tiny"]
)
def test_every_family_has_one(name):
    model = create_model(name, num_classes=3, **narrow_options(name))
    assert fingerprint(model) == fingerprint(copy.deepcopy(model))


@pytest.mark.parametrize("create", [create_detector, create_segmenter])
def test_dense_models_have_one(create):
    head = {"head": "semantic_fpn"} if create is create_segmenter else {}
    model = create(NAME, num_classes=3, depth=4, out_blocks=(0, 1, 2, 3), **head)
    assert fingerprint(model) == fingerprint(copy.deepcopy(model))


def weight(model):
    with torch.no_grad():
        model.head.weight[0, 0] += 1e-6


def buffer(model):
    model.backbone.patch_embed[0][1].running_mean[0] += 1e-6


def eps(model):
    model.backbone.norm.eps = 1e-5


def setting(model):
    model.backbone.blocks[0].attn.num_heads = 2


def kind(model):
    model.backbone.blocks[0].mlp = nn.Identity()


def dtype(model):
    model.bfloat16()


def parametrized(model):
    nn.utils.parametrizations.weight_norm(model.head)


@pytest.mark.parametrize("change", [weight, buffer, eps, setting, kind, dtype, parametrized])
def test_every_change_has_another(known, change):
    model = build()
    change(model)
    assert fingerprint(model) != known


def hooked(model):
    model.backbone.norm.register_forward_hook(lambda *_: None)


def before(model):
    model.backbone.register_forward_pre_hook(lambda *_: None)


def method(model):
    model.backbone.forward_features = types.MethodType(lambda self, x: x, model.backbone)


def foreign(model):
    class Mine(nn.Linear):
        pass

    model.head = Mine(model.backbone.embed_dim, 3)


def pruned(model):
    from torch.nn.utils import prune

    prune.l1_unstructured(model.head, "weight", 0.5)


def compiled(model):
    model.backbone._compiled_call_impl = len  # as `compile()` sets it


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (hooked, "backbone.norm has hooks"),
        (before, "backbone has hooks"),
        (method, r"backbone.forward_features is .*"),
        (foreign, r"foreign.<locals>.Mine is a class of .*"),
        (pruned, "head has hooks"),
        (compiled, "backbone is compiled"),
    ],
)
def test_what_a_hash_does_not_cover_has_none(change, text):
    model = build()
    change(model)
    with pytest.raises(NoFingerprint, match=f"^{text}$"):
        fingerprint(model)


def test_a_replaced_method_of_a_class_is_noticed(monkeypatch):
    from tetravit.runtimes.parts import fingerprint as module

    monkeypatch.setattr("tetravit.backbones.xcit.XCiT.pool", lambda self, x: x)
    module._check_class.cache_clear()
    try:
        with pytest.raises(NoFingerprint, match=r"^XCiT\.pool is replaced$"):
            fingerprint(build())
    finally:
        module._check_class.cache_clear()


def test_global_hooks_are_noticed():
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        with pytest.raises(NoFingerprint, match=r"^hooks are set for all modules$"):
            fingerprint(build())
    finally:
        handle.remove()


def test_the_machine_is_named():
    facts = machine()
    assert facts["torch"] == torch.__version__
    assert len(facts["source"]) == 64
    assert facts["processor"]
