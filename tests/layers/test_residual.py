"""A branch comes back to its tokens in one product, or as written where that is not possible."""

import pytest
import torch
from torch import nn

from tetravit.layers.drop_path import DropPath
from tetravit.layers.residual import add_linear, by_hand
from tetravit.layers.residual import linear as run


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("gamma", [None, torch.tensor([0.5, -2.0, 3.0])], ids=["plain", "scaled"])
@pytest.mark.parametrize("shape", [(2, 5), (2, 3, 4), (1, 1), (0, 5)], ids=str)
def test_one_product_gives_what_is_written(shape, gamma, bias):
    linear = nn.Linear(4, 3, bias=bias)
    x, read = torch.randn(*shape, 3, requires_grad=True), torch.randn(*shape, 4, requires_grad=True)
    given = tuple(p for p in (x, read, linear.weight, linear.bias) if p is not None)
    branch = linear(read)
    expected = x + (branch if gamma is None else gamma * branch)
    found = add_linear(x, linear, read, DropPath(), gamma)
    torch.testing.assert_close(found, expected)
    pull = torch.randn_like(expected)
    torch.testing.assert_close(*(torch.autograd.grad(y, given, pull) for y in (found, expected)))


def test_dropped_branches_leave_their_images_alone():
    x, read, linear = torch.randn(32, 2, 3), torch.randn(32, 2, 4), nn.Linear(4, 3)
    answer = add_linear(x, linear, read, DropPath(0.5).train())
    alone = (answer == x).flatten(1).all(dim=1)
    assert alone.any()
    torch.testing.assert_close(answer[~alone], (x + 2 * linear(read))[~alone])


def test_nothing_that_was_given_is_written_to():
    x, read, linear = torch.randn(2, 5, 3), torch.randn(2, 5, 4), nn.Linear(4, 3)
    before = x.clone()
    add_linear(x, linear, read, DropPath())
    add_linear(x, nn.Linear(4, 3, bias=False), read, DropPath())
    assert torch.equal(x, before)


def test_layers_are_computed_by_hand_only_in_float32_on_a_processor():
    x, linear = torch.randn(2, 3), nn.Linear(3, 3)
    assert by_hand(x, linear, nn.LayerNorm(3))
    assert not by_hand(x.double(), linear.double())
    assert not by_hand(x, linear)  # a float64 layer for float32 tokens
    assert not by_hand(x, nn.Sequential(nn.Linear(3, 3)))
    assert not by_hand(torch.empty(2, 3, device="meta"), nn.Linear(3, 3, device="meta"))
    linear = nn.Linear(3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert not by_hand(x, linear)
    per_sample = torch.func.vmap(lambda t: torch.tensor(1.0 if by_hand(t, linear) else 0.0) + 0 * t.sum())(x)
    assert not per_sample.any()
    linear.register_full_backward_hook(lambda *_: None)
    assert not by_hand(x, linear)
    linear = nn.Linear(3, 3)
    linear.register_full_backward_pre_hook(lambda *_: None)
    assert not by_hand(x, linear)
    linear = nn.Linear(3, 3)
    linear.forward = lambda x: x  # as programs do that fetch weights when they are needed
    assert not by_hand(x, linear)
    listener = nn.modules.module.register_module_forward_hook(lambda *_: None)
    assert not by_hand(x, nn.Linear(3, 3))
    listener.remove()
    assert by_hand(x, nn.Linear(3, 3))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(2, 5), (2, 3, 4), (1,), (0, 5)], ids=str)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad])
def test_a_layer_run_by_hand_gives_what_it_gives(mode, shape, bias):
    layer, x = nn.Linear(4, 3, bias=bias), torch.randn(*shape, 4)
    with mode():
        torch.testing.assert_close(run(layer, x), layer(x))


def test_a_layer_that_is_not_plain_is_called():
    layer, heard = nn.Linear(4, 3), []
    layer.register_forward_hook(lambda *_: heard.append(True))
    run(layer, torch.randn(2, 5, 4))
    assert heard == [True]
