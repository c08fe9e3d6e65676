"""What is computed again in the backward pass: the same gradients, to the bit, and less that is kept for them."""

import copy

import pytest
import torch
from tests.toys import TOYS
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from tetravit.layers import selective_recompute as module
from tetravit.layers.selective_recompute import recomputable, recomputable_norm, selective_recompute
from tetravit.models import create_model

NEVER = 2**62


@pytest.fixture(autouse=True)
def small_tensors_count(monkeypatch):
    monkeypatch.setattr(module, "MIN_VALUES", 0)


@pytest.fixture
def saved(monkeypatch):
    """The tensors that autograd would keep, and whether it does."""
    tensors, pack = [], module._packed

    def noted(tensor):
        packed = pack(tensor)
        tensors.append((tensor, isinstance(packed, module._Saved)))
        return packed

    monkeypatch.setattr(module, "_packed", noted)
    return tensors


def kept(saved):
    return {t.untyped_storage().data_ptr() for t, kept in saved if kept}


def tokens():
    return torch.randn(2, 5, 4, requires_grad=True)


def test_a_value_is_not_kept(saved):
    x, layer = tokens(), nn.Linear(4, 4)
    with selective_recompute(x):
        active = recomputable(F.gelu(x), F.gelu, x)
        y = layer(active)
    assert active.data_ptr() not in kept(saved)
    found = torch.autograd.grad(y.square().sum(), (x, layer.weight))
    expected = torch.autograd.grad(layer(F.gelu(x)).square().sum(), (x, layer.weight))
    assert all(map(torch.equal, found, expected))


def test_values_may_follow_from_one_another(saved):
    x, norm, layer = tokens(), nn.LayerNorm(4), nn.Linear(5, 3)
    with selective_recompute(x):
        normed = recomputable_norm(norm, x)
        turned = recomputable(normed.mT.contiguous(), lambda y: y.mT.contiguous(), normed)
        y = layer(turned[:1])
    assert kept(saved).isdisjoint({normed.data_ptr(), turned.data_ptr()})
    found = torch.autograd.grad(y.square().sum(), (x, norm.weight, layer.weight))
    expected = torch.autograd.grad(layer(norm(x).mT[:1]).square().sum(), (x, norm.weight, layer.weight))
    torch.testing.assert_close(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", TOYS)
def test_gradients_are_the_same_to_the_bit(name, mode, monkeypatch):
    torch.manual_seed(0)
    model = create_model(name, num_classes=5, drop_path=0.3, **TOYS[name]).train(mode == "train")
    images, gradients = torch.randn(2, 3, 64, 96), []
    for least in (0, NEVER):
        monkeypatch.setattr(module, "MIN_VALUES", least)
        once = copy.deepcopy(model)
        torch.manual_seed(1)
        once(images).square().sum().backward()
        gradients.append({n: p.grad for n, p in once.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert [n for n, g in gradients[0].items() if not torch.equal(g, gradients[1][n])] == []


@pytest.mark.parametrize("name", TOYS)
def test_gradients_of_gradients_are_the_same(name, monkeypatch):
    torch.manual_seed(0)
    model = create_model(name, num_classes=5, **TOYS[name]).train()
    images, found = torch.randn(2, 3, 64, 64, requires_grad=True), []
    for least in (0, NEVER):
        monkeypatch.setattr(module, "MIN_VALUES", least)
        with sdpa_kernel(SDPBackend.MATH):
            first = torch.autograd.grad(model(images).square().sum(), images, create_graph=True)[0]
        found.append(torch.autograd.grad(first.square().sum(), images)[0])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5 * float(found[1].abs().max()))


def test_the_graph_may_be_used_twice():
    x, layer = tokens(), nn.Linear(4, 4)
    with selective_recompute(x):
        y = layer(recomputable(F.gelu(x), F.gelu, x)).square().sum()
    found = [torch.autograd.grad(y, layer.weight, retain_graph=True)[0] for _ in range(2)]
    assert torch.equal(*found)


@pytest.mark.parametrize("what", ["source", "weight"])
def test_a_tensor_that_has_changed_is_an_error(what):
    x, layer = tokens(), nn.Linear(4, 4)
    source = x * 2
    with selective_recompute(x):
        y = layer(recomputable(source.relu(), torch.relu, source))
    with torch.no_grad():
        (source if what == "source" else layer.weight).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_a_value_that_was_written_to_is_kept(saved):
    """As a hook on a norm may do."""
    x, norm, layer = tokens(), nn.LayerNorm(4), nn.Linear(4, 4)
    with selective_recompute(x):
        normed = recomputable_norm(norm, x)
        normed.mul_(3)
        y = layer(normed)
    assert normed.data_ptr() in kept(saved)
    found = torch.autograd.grad(y.square().sum(), layer.weight)
    torch.testing.assert_close(found, torch.autograd.grad(layer(3 * norm(x)).square().sum(), layer.weight))


def test_a_norm_with_a_hook_is_not_computed_again(saved):
    x, norm, layer = tokens(), nn.LayerNorm(4), nn.Linear(4, 4)
    norm.register_forward_hook(lambda _module, _inputs, output: 3 * output)
    with selective_recompute(x):
        y = layer(recomputable_norm(norm, x))
    found = torch.autograd.grad(y.square().sum(), layer.weight)
    torch.testing.assert_close(found, torch.autograd.grad(layer(norm(x)).square().sum(), layer.weight))


def test_other_hooks_on_saved_tensors_come_first():
    x, seen = tokens(), []
    with (
        torch.autograd.graph.saved_tensors_hooks(lambda t: seen.append(t) or t, lambda t: t),
        selective_recompute(x),
    ):
        active = recomputable(F.gelu(x), F.gelu, x)
        active.square()
    assert any(t.data_ptr() == active.data_ptr() for t in seen)
    y = checkpoint(lambda x: x.square(), x, use_reentrant=False)
    torch.testing.assert_close(torch.autograd.grad(y.sum(), x)[0], 2 * x)


def test_nothing_is_remembered_outside():
    x = tokens()
    with selective_recompute(x):
        recomputable(F.gelu(x), F.gelu, x)
    assert module._state.recipes is None
    with torch.no_grad(), selective_recompute(x):
        assert module._state.recipes is None


@pytest.mark.parametrize(
    ("name", "options", "least"),
    [
        ("deit_tiny", {"depth": 3, "dim": 48}, 0.65),
        ("twins_svt_small", {"dims": (16, 16, 32, 32), "depths": (2, 2, 2, 2), "num_heads": (2,) * 4}, 0.65),
        ("xcit_nano_12_p16", {"depth": 2, "dim": 32}, 0.6),
        ("convit_tiny", {"depth": 2, "num_gpsa": 1, "dim": 48}, 0.7),
    ],
)
def test_blocks_keep_little(name, options, least, saved):
    """The share of what they would keep, parameters left out."""
    model = create_model(name, num_classes=2, drop_path=0.1, **options).train()
    parameters = {p.data_ptr() for p in model.parameters()}
    model(torch.randn(2, 3, 224, 224))
    sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t, _ in saved}
    total, part = (
        sum(sizes[address] for address in addresses - parameters) for addresses in (sizes.keys(), kept(saved))
    )
    assert part < least * total, part / total
