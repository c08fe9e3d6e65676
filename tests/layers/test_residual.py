"""A residual branch ends in one product, or as written where that is not possible."""

import pytest
import torch
from torch import nn

from tetravit.layers.drop_path import DropPath
from tetravit.layers.residual import add_linear
from tetravit.layers.residual import linear as run


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("gamma", [None, torch.tensor([0.5, -2.0, 3.0])], ids=["plain", "scaled"])
@pytest.mark.parametrize("shape", [(2, 5), (2, 3, 4), (1, 1), (0, 5)], ids=str)
def test_one_product_gives_what_is_written(shape, gamma, bias):
    linear = nn.Linear(4, 3, bias=bias)
    x, y = torch.randn(*shape, 3, requires_grad=True), torch.randn(*shape, 4, requires_grad=True)
    given = tuple(p for p in (x, y, linear.weight, linear.bias) if p is not None)
    branch = linear(y)
    expected = x + (branch if gamma is None else gamma * branch)
    result = add_linear(x, linear, y, DropPath(), gamma)
    torch.testing.assert_close(result, expected)
    pull = torch.randn_like(expected)
    torch.testing.assert_close(*(torch.autograd.grad(out, given, pull) for out in (result, expected)))


def test_dropped_branches_leave_their_images_alone():
    x, y, linear = torch.randn(32, 2, 3), torch.randn(32, 2, 4), nn.Linear(4, 3)
    result = add_linear(x, linear, y, DropPath(0.5).train())
    alone = (result == x).flatten(1).all(dim=1)
    assert alone.any()
    torch.testing.assert_close(result[~alone], (x + 2 * linear(y))[~alone])


def test_nothing_that_was_given_is_written_to():
    x, y, linear = torch.randn(2, 5, 3), torch.randn(2, 5, 4), nn.Linear(4, 3)
    before = x.clone()
    add_linear(x, linear, y, DropPath())
    add_linear(x, nn.Linear(4, 3, bias=False), y, DropPath())
    assert torch.equal(x, before)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(2, 5), (2, 3, 4), (1,), (0, 5)], ids=str)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad])
def test_the_fused_form_of_a_layer_gives_what_the_layer_gives(mode, shape, bias):
    layer, x = nn.Linear(4, 3, bias=bias), torch.randn(*shape, 4)
    with mode():
        torch.testing.assert_close(run(layer, x), layer(x))


def test_a_layer_that_is_not_plain_is_called():
    layer, calls = nn.Linear(4, 3), []
    layer.register_forward_hook(lambda *_: calls.append(True))
    run(layer, torch.randn(2, 5, 4))
    assert calls == [True]
