"""The MLP behind its norm gives the same by parts of tokens as all at once."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tetravit.layers import mlp
from tetravit.layers.drop_path import DropPath
from tetravit.layers.mlp import Mlp, add_mlp


class Largest(TorchDispatchMode):
    """Keeps the largest number of values that an operation returns."""

    def __init__(self):
        super().__init__()
        self.values = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        answer = func(*args, **(kwargs or {}))
        for x in answer if isinstance(answer, tuple) else (answer,):
            self.values = max(self.values, x.numel() if isinstance(x, torch.Tensor) else 0)
        return answer


def block(dim=8, hidden=32, rate=0.0):
    """A norm and an MLP that are not what they start as, and stochastic depth."""
    norm = nn.LayerNorm(dim)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return Mlp(dim, hidden), norm, DropPath(rate)


@pytest.mark.parametrize("gamma", [None, torch.tensor([0.5, -2.0] * 4)], ids=["plain", "scaled"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("at_once", [0, 2**22], ids=["parts", "whole"])
@pytest.mark.parametrize("shape", [(2, 50, 8), (3, 4, 5, 8), (1, 1, 8), (0, 5, 8)], ids=str)
def test_parts_give_what_the_whole_gives(shape, mode, gamma, at_once, monkeypatch):
    monkeypatch.setattr(mlp, "PART", 3 * 32)  # three tokens at a time
    monkeypatch.setattr(mlp, "AT_ONCE", at_once)
    (layer, norm, drop_path), x = block(), torch.randn(shape)
    branch = layer(norm(x))
    with mode():
        answer = add_mlp(x, layer, norm, drop_path, gamma)
    torch.testing.assert_close(answer, x + (branch if gamma is None else gamma * branch))


def test_stochastic_depth_drops_the_same_images_in_parts(monkeypatch):
    monkeypatch.setattr(mlp, "PART", 3 * 32)
    monkeypatch.setattr(mlp, "AT_ONCE", 0)
    (layer, norm, drop_path), x = block(rate=0.5), torch.randn(16, 5, 8)
    torch.manual_seed(0)
    answer = add_mlp(x, layer, norm, drop_path)
    torch.manual_seed(0)
    torch.testing.assert_close(answer, x + drop_path(layer(norm(x))))
    assert any(torch.equal(a, b) for a, b in zip(answer, x, strict=True))


def test_evaluation_never_holds_all_hidden_features(monkeypatch):
    monkeypatch.setattr(mlp, "FUSED_PART", 64)
    (layer, norm, drop_path), x = block(dim=4), torch.randn(1000, 4)
    with torch.no_grad(), Largest() as largest:
        add_mlp(x, layer, norm, drop_path)
    assert largest.values == x.numel()


@pytest.mark.parametrize("place", ["", "fc1", "fc2", "norm", "drop_path"])
@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_a_module_with_a_hook_is_called(register, place):
    (layer, norm, drop_path), calls = block(), []
    x = torch.randn(2, 3, 8)
    expected = add_mlp(x, layer, norm, drop_path)
    module = {"norm": norm, "drop_path": drop_path}.get(place) or layer.get_submodule(place)
    getattr(module, register)(lambda *_: calls.append(True))
    torch.testing.assert_close(add_mlp(x, layer, norm, drop_path), expected)
    assert calls == [True]


@pytest.mark.parametrize("mlp", [nn.Identity(), nn.Linear(8, 8)], ids=["identity", "linear"])
def test_another_module_in_the_place_of_the_mlp_is_called(mlp):
    (_, norm, drop_path), x = block(), torch.randn(2, 3, 8)
    torch.testing.assert_close(add_mlp(x, mlp, norm, drop_path), x + mlp(norm(x)))


def test_a_layer_that_was_replaced_is_called():
    (layer, norm, drop_path), x = block(), torch.randn(2, 3, 8)
    layer.fc1 = nn.Sequential(layer.fc1, nn.Identity())
    torch.testing.assert_close(add_mlp(x, layer, norm, drop_path), x + layer(norm(x)))


def test_low_precision_and_autocast_take_the_plain_form():
    (layer, norm, drop_path), x = block(), torch.randn(2, 3, 8)
    expected = add_mlp(x, layer, norm, drop_path)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = add_mlp(x, layer, norm, drop_path)
    assert mixed.dtype == torch.float32
    low = add_mlp(x.bfloat16(), layer.bfloat16(), norm.bfloat16(), drop_path)
    assert low.dtype == torch.bfloat16
    for answer in (mixed, low.float()):
        torch.testing.assert_close(answer, expected, atol=0.1, rtol=0.1)
