"""The rule of every shortcut: a module is bypassed only where calling it would do nothing else."""

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn.modules import module as module_hooks
from torch.nn.utils import parametrizations, prune

from tetravit.layers.mlp import Mlp
from tetravit.layers.plain import can_use_fused, is_plain_module, is_plain_tree


class Adapter(nn.Linear):
    """A subclass, whose forward may do anything."""


class Renamed(torch.Tensor):
    """A tensor subclass, as those of quantized and sharded parameters."""


@pytest.mark.parametrize("make", [lambda: nn.Linear(3, 3), lambda: nn.LayerNorm(3), lambda: Mlp(3, 4)])
def test_modules_of_torch_and_of_this_package_are_plain(make):
    assert is_plain_module(make())
    assert is_plain_tree(make())
    assert can_use_fused(torch.randn(2, 3), make())


HOOKS = [
    "register_forward_hook",
    "register_forward_pre_hook",
    "register_full_backward_hook",
    "register_full_backward_pre_hook",
]


@pytest.mark.parametrize("register", HOOKS)
def test_a_hook_makes_a_module_another(register):
    linear = nn.Linear(3, 3)
    handle = getattr(linear, register)(lambda *_: None)
    assert not is_plain_module(linear)
    assert not can_use_fused(torch.randn(2, 3), linear)
    handle.remove()
    assert is_plain_module(linear)


@pytest.mark.parametrize("name", HOOKS)
def test_a_global_hook_makes_all_modules_others(name):
    register = getattr(module_hooks, name.replace("register_", "register_module_"))
    handle = register(lambda *_: None)
    assert not is_plain_module(nn.Linear(3, 3))
    assert not can_use_fused(torch.randn(2, 3), nn.Linear(3, 3))
    handle.remove()
    assert is_plain_module(nn.Linear(3, 3))


def replaced_forward():
    linear = nn.Linear(3, 3)
    linear.forward = lambda x: x  # as programs do that load weights when they are needed
    return linear


def compiled():
    linear = nn.Linear(3, 3)
    linear.compile(backend="eager")
    return linear


def quantized():
    linear = nn.Linear(3, 3)
    linear.weight = nn.Parameter(linear.weight.data.as_subclass(Renamed), requires_grad=False)
    return linear


def without_parameter():
    linear = nn.Linear(3, 3)
    weight = linear.weight.data
    del linear.weight
    linear.weight = weight  # as sharded modules have it
    return linear


@pytest.mark.parametrize(
    "make",
    [
        lambda: Adapter(3, 3),
        lambda: nn.Sequential(nn.Linear(3, 3)),
        lambda: parametrizations.weight_norm(nn.Linear(3, 3)),
        lambda: prune.l1_unstructured(nn.Linear(3, 3), "weight", 0.5),
        lambda: torch.ao.nn.quantized.dynamic.Linear(3, 3),
        replaced_forward,
        compiled,
        quantized,
        without_parameter,
    ],
    ids=[
        "subclass",
        "wrapper",
        "weight_norm",
        "pruned",
        "int8",
        "forward",
        "compiled",
        "quantized",
        "sharded",
    ],
)
def test_whatever_acts_in_the_call_is_not_plain(make):
    assert not is_plain_module(make())
    assert not is_plain_tree(nn.ModuleList([make()]))


def test_a_tree_is_plain_only_if_everything_inside_is():
    mlp = Mlp(3, 4)
    mlp.fc2.register_forward_hook(lambda *_: None)
    assert is_plain_module(mlp)
    assert not is_plain_tree(mlp)


def test_fused_forms_are_for_eager_float32_on_a_cpu():
    x, linear = torch.randn(2, 3), nn.Linear(3, 3)
    assert can_use_fused(x, linear)
    assert not can_use_fused(x.double(), nn.Linear(3, 3).double())
    assert not can_use_fused(x, nn.Linear(3, 3).double())
    assert not can_use_fused(torch.empty(2, 3, device="meta"), nn.Linear(3, 3, device="meta"))
    assert not can_use_fused(x.as_subclass(Renamed), linear)
    with torch.autocast("cpu", torch.bfloat16):
        assert not can_use_fused(x, linear)
    with forward_ad.dual_level():
        assert not can_use_fused(x, linear)
    per_sample = torch.func.vmap(lambda t: torch.tensor(float(can_use_fused(t, linear))) + 0 * t.sum())(x)
    assert not per_sample.any()
