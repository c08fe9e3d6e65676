"""Outputs of named modules, from every family at any size; torch.fx and torch.jit.script are refused in one line."""

import copy
import pickle

import pytest
import torch
from torch import nn

import tetravit
from tetravit.models import create_model

FEW = {"depths": (2, 2, 2, 2), "num_heads": (2, 2, 2, 2)}
MODELS = {
    "convit_tiny": {"depth": 3, "num_gpsa": 2, "dim": 32},
    "deit_tiny": {"depth": 3, "dim": 48},
    "gcvit_xxtiny": {"dim": 16, "window_size": (3, 3, 3, 3), **FEW},
    "twins_svt_small": {"dims": (16, 16, 32, 32), "window_size": 3, **FEW},
    "xcit_nano_12_p16": {"depth": 3, "dim": 32},
}


@pytest.fixture(scope="module", params=MODELS)
def small(request):
    torch.manual_seed(0)
    return create_model(request.param, num_classes=5, **MODELS[request.param]).eval()


@pytest.mark.parametrize("size", [(64, 64), (70, 45)], ids=str)
def test_every_module_gives_its_output(small, size):
    images = torch.randn(2, 3, *size)
    names = [n for n, m in small.named_modules() if n and not isinstance(m, nn.ModuleList)]
    kept = {}
    twin = copy.deepcopy(small)
    for name in names:
        twin.get_submodule(name).register_forward_hook(lambda *args, name=name: kept.update({name: args[-1]}))
    with torch.no_grad():
        twin(images)
        outputs = tetravit.create_feature_extractor(small, names)(images)
    assert list(outputs) == names
    for name in names:
        torch.testing.assert_close(outputs[name], kept[name])


def test_outputs_have_the_names_that_are_given(small):
    images = torch.randn(1, 3, 64, 64)
    extractor = tetravit.create_feature_extractor(small, {"head": "logits", "backbone.norm": "tokens"})
    with torch.no_grad():
        outputs = extractor(images)
        torch.testing.assert_close(outputs["logits"], small(images), atol=1e-5, rtol=1e-4)
    assert list(outputs) == ["logits", "tokens"]


def test_parameters_are_shared_and_the_model_stays_as_it_is(small):
    extractor = tetravit.create_feature_extractor(small, ["backbone"])
    ours = dict(small.named_parameters())
    assert all(ours[n] is p for n, p in extractor.model.named_parameters())
    assert all(not m._forward_hooks for m in small.modules())
    extractor(torch.randn(2, 3, 64, 64))["backbone"].sum().backward()
    assert all(p.grad is not None for p in small.backbone.parameters())
    small.zero_grad()


def test_copies_and_pickles_keep_their_own_outputs(small):
    extractor = tetravit.create_feature_extractor(small, ["backbone"])
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = extractor(images)["backbone"]
        for twin in (copy.deepcopy(extractor), pickle.loads(pickle.dumps(extractor))):
            assert torch.equal(twin(images)["backbone"], expected)


@pytest.mark.slow
def test_it_compiles_and_exports(small):
    extractor = tetravit.create_feature_extractor(small, ["backbone", "head"])
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = extractor(images)
        compiled = torch.compile(extractor, backend="eager")(images)
        program = torch.export.export(extractor, (images,)).module()(images)
    for name, value in expected.items():
        torch.testing.assert_close(compiled[name], value, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(program[name], value, atol=1e-5, rtol=1e-4)


def test_names_are_checked(small):
    with pytest.raises(
        ValueError, match=r"^Classifier has no module 'backbone\.nrm'\. Did you mean 'backbone\.norm'\?$"
    ):
        tetravit.create_feature_extractor(small, ["backbone.nrm"])
    container = next(n for n, m in small.named_modules() if isinstance(m, nn.ModuleList))
    message = f"^{container!r} is a list of modules and is not called; name one, such as '{container}.0'\\.$"
    with pytest.raises(ValueError, match=message):
        tetravit.create_feature_extractor(small, [container])


def test_a_module_that_is_not_called_is_told(small):
    model = copy.deepcopy(small)
    model.spare = nn.Identity()
    extractor = tetravit.create_feature_extractor(model, ["spare"])
    with pytest.raises(ValueError, match=r"^Classifier does not call 'spare' in its forward\.$"):
        extractor(torch.randn(1, 3, 64, 64))


def test_fx_and_script_point_to_what_works(small):
    with pytest.raises(
        ValueError,
        match=r"^torch\.fx\.symbolic_trace cannot trace models of any image size; use torch\.export\.export, or"
        r" tetravit\.create_feature_extractor for the outputs of named modules\.$",
    ):
        torch.fx.symbolic_trace(small)
    with pytest.raises(
        ValueError,
        match=r"^torch\.jit\.script has no support for these models; use torch\.export\.export, torch\.jit\.trace, or"
        r' tetravit\.export\(model, "FILE\.onnx"\)\.$',
    ):
        torch.jit.script(small)
