"""Whatever acts in the call of a module acts in every family: hooks, adapters, quantization, pruning, sharding."""

import copy
import warnings
from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from tetravit.models import create_model

FEW = {"depths": (2, 2, 2, 2), "num_heads": (2, 2, 2, 2)}
MODELS = {
    "convit_tiny": {"depth": 3, "num_gpsa": 2, "dim": 32},
    "deit_tiny_distilled": {"depth": 3, "dim": 48},
    "gcvit_xxtiny": {"dim": 16, "window_size": (3, 3, 3, 3), **FEW},
    "twins_svt_small": {"dims": (16, 16, 32, 32), "window_size": 3, **FEW},
    "xcit_nano_12_p16": {"depth": 3, "dim": 32},
}
CONTAINERS = (nn.ModuleList, nn.ModuleDict)


@pytest.fixture(scope="module", params=MODELS)
def small(request):
    """A narrow model of few blocks, with values in every parameter."""
    torch.manual_seed(0)
    model = create_model(request.param, num_classes=5, **MODELS[request.param]).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return model


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 64, 32)


def called(model):
    """Names of the modules that have a call: all but lists of modules and the model itself.

    A backbone of two embeddings is called by `embeddings`: its `forward` gives their mean.
    """
    inside = {n: m for n, m in model.named_modules() if n and not isinstance(m, CONTAINERS)}
    if model.backbone.num_embeddings > 1:
        del inside["backbone"]
    return inside


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_a_hook_on_any_module_is_called(small, images, mode):
    model = copy.deepcopy(small).train(mode == "train")
    plain = copy.deepcopy(model)(images)
    calls = Counter()
    for name, module in called(model).items():
        module.register_forward_hook(lambda *_, name=name: calls.update([name]))
    close(model(images), plain)
    assert called(model).keys() - calls.keys() == set()


@pytest.mark.parametrize("register", ["register_forward_pre_hook", "register_full_backward_hook"])
def test_other_hooks_are_called_too(small, images, register):
    model, calls = copy.deepcopy(small), Counter()
    for name, module in called(model).items():
        getattr(module, register)(lambda *_, name=name: calls.update([name]))
    inputs = images.clone().requires_grad_()
    close(model(inputs), small(images))
    model(inputs).sum().backward()
    missing = called(model).keys() - calls.keys()
    if register == "register_full_backward_hook":  # tables of positions have no tensor among their inputs
        missing = {n for n in missing if not n.endswith(("pos_embed", "pos_embed.proj", "bias", "pos_proj"))}
    assert missing == set()


@pytest.mark.slow
def test_one_hook_alone_is_called(small, images):
    """Alone, since one hook may turn off the form that bypasses another module."""
    model = copy.deepcopy(small)
    with torch.no_grad():
        expected = small(images)
        for name, module in called(model).items():
            calls = []
            with_hook = module.register_forward_hook(lambda *_, calls=calls: calls.append(True))
            result = model(images)
            with_hook.remove()
            assert calls, name
            close(result, expected)


def test_a_global_hook_is_called_for_every_module(small, images):
    seen = set()
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.add(module))
    try:
        result = small(images)
    finally:
        handle.remove()
    assert set(called(small).values()) <= seen
    close(result, small(images))


@pytest.mark.slow
def test_what_a_hook_returns_is_used(small, images):
    """Zero out of a module: as if its parameters of that branch were zero."""
    expected = small(images)
    for name, module in called(small).items():
        if name.endswith((".attn", ".mlp", ".fc2")) and "se.fc2" not in name:
            handle = module.register_forward_hook(lambda *args: torch.zeros_like(args[-1]))
            changed = small(images)
            handle.remove()
            assert not torch.allclose(changed, expected, atol=1e-5), name
    close(small(images), expected)


def test_hooks_on_the_last_block_see_all_tokens(small, images):
    """Without a hook it is shortened to the class token."""
    model = copy.deepcopy(small)
    backbone = model.backbone
    last = [n for n, _ in backbone.named_modules() if n.endswith("attn")][-1].removesuffix(".attn")
    shapes = []
    backbone.get_submodule(last).register_forward_hook(lambda *args: shapes.append(args[-1]))
    backbone(images)
    backbone.forward_features(images)
    first, second = (x[-1] if isinstance(x, tuple) else x for x in shapes)
    assert first.shape == second.shape


class LoRA(nn.Module):
    """The form of peft's layers: the base layer, two adapters, and the base's weight by name."""

    def __init__(self, base):
        super().__init__()
        self.base_layer = base
        self.a = nn.Linear(base.in_features, 4, bias=False)
        self.b = nn.Linear(4, base.out_features, bias=False)
        self.in_features, self.out_features = base.in_features, base.out_features

    weight = property(lambda self: self.base_layer.weight)
    bias = property(lambda self: self.base_layer.bias)

    def forward(self, x):
        return self.base_layer(x) + self.b(self.a(x))

    def merged(self):
        base = copy.deepcopy(self.base_layer)
        with torch.no_grad():
            base.weight += self.b.weight @ self.a.weight
        return base


def with_linears(model, change):
    """The model with every linear layer of the backbone changed."""
    model = copy.deepcopy(model)
    for name, module in list(model.backbone.named_modules()):
        if isinstance(module, nn.Linear):
            parent, _, last = name.rpartition(".")
            setattr(model.backbone.get_submodule(parent), last, change(module))
    return model


def test_adapters_learn_and_merge(small, images):
    model = with_linears(small, LoRA)
    model(images).square().sum().backward()
    adapters = {n: p for n, p in model.named_parameters() if n.endswith((".a.weight", ".b.weight"))}
    assert [n for n, p in adapters.items() if p.grad is None or not p.grad.any()] == []
    merged = copy.deepcopy(model)
    for name, module in list(merged.named_modules()):
        if isinstance(module, LoRA):
            parent, _, last = name.rpartition(".")
            setattr(merged.get_submodule(parent), last, module.merged())
    for grad in (torch.no_grad, torch.enable_grad):
        with grad():
            close(merged(images), model(images))
    assert not torch.allclose(merged(images), small(images), atol=1e-3)


def test_dynamic_quantization_stays_close(small, images):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.ao.quantization.quantize_dynamic(copy.deepcopy(small), {nn.Linear})
    with torch.no_grad():
        found, expected = model(images), small(images)
    assert torch.nn.functional.cosine_similarity(found, expected).min() > 0.95
    assert not torch.equal(found, expected)


def test_pruned_layers_count_as_pruned(small, images):
    model = copy.deepcopy(small)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            prune.l1_unstructured(module, "weight", 0.3)
    with torch.no_grad():
        found = model(images)
        assert not torch.allclose(found, small(images), atol=1e-4)
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                prune.remove(module, "weight")
        close(model(images), found)


def test_parametrized_layers_train(small, images):
    model = copy.deepcopy(small)
    for module in list(model.modules()):
        if isinstance(module, nn.Linear):
            parametrizations.weight_norm(module)
    close(model(images), small(images))
    model(images).square().sum().backward()
    gains = {n: p for n, p in model.named_parameters() if n.endswith("original0")}
    assert gains
    assert [n for n, p in gains.items() if p.grad is None] == []


def test_convolutions_have_the_constructor_of_torch(small):
    """Adapters build layers of the type of a given one."""
    for module in small.modules():
        if isinstance(module, nn.Conv2d):
            like = type(module)(
                module.in_channels, 4, module.kernel_size, module.stride, module.padding, bias=False
            )
            assert like.weight.shape == (4, module.in_channels, *module.kernel_size)
            assert like.bias is None


@pytest.mark.parametrize("replace", ["attn", "mlp"])
def test_another_module_may_stand_in_the_place_of_a_part(small, images, replace):
    """An identity takes a part out of a block, as studies do."""

    class Through(nn.Module):
        def forward(self, x, *others):
            return x

    model = copy.deepcopy(small)
    block = next(m for n, m in model.named_modules() if hasattr(m, "attn") and hasattr(m, "mlp"))
    setattr(block, replace, Through())
    assert model(images).isfinite().all()
    assert not torch.allclose(model(images), small(images), atol=1e-4)


@pytest.mark.slow
def test_a_compiled_model_calls_hooks(small, images):
    model, calls = copy.deepcopy(small), []
    attn = next(m for n, m in model.named_modules() if n.endswith(".attn"))
    attn.register_forward_hook(lambda *args: calls.append(True) or 0 * args[-1])
    with torch.no_grad():
        expected = model(images)
        found = torch.compile(model, backend="eager", fullgraph=True)(images)
    close(found, expected)
    assert not torch.allclose(found, small(images), atol=1e-4)
