"""The MLP by parts agrees with its plain form: answers, gradients, gradients of gradients."""

import pytest
import torch

from tetravit.kernels.residual_mlp import MlpWeights, plain_residual_mlp, residual_mlp

TOKENS, DIM, HIDDEN = 7, 4, 6


def inputs(dtype=torch.float64):
    """Tokens and weights that want gradients."""
    shapes = [(TOKENS, DIM), (DIM,), (DIM,), (HIDDEN, DIM), (HIDDEN,), (DIM, HIDDEN), (DIM,)]
    x, *weights = (torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes)
    return x, MlpWeights(*weights)


def keeps(dtype=torch.float64):
    return torch.tensor([0.0, 2.0, 2.0, 0.0, 2.0, 0.0, 2.0], dtype=dtype)[:, None]


@pytest.mark.parametrize("part", [1, 3, 7, 100])
@pytest.mark.parametrize("keep", [None, keeps()], ids=["all", "some"])
def test_training_agrees_with_the_plain_form(keep, part):
    x, weights = inputs()
    found, expected = residual_mlp(x, keep, weights, 1e-6, part), plain_residual_mlp(x, keep, weights, 1e-6)
    torch.testing.assert_close(found, expected)
    pull = torch.randn_like(expected)
    gradients = [torch.autograd.grad(y, (x, *weights), pull) for y in (found, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("keep", [None, keeps(torch.float32)], ids=["all", "some"])
def test_evaluation_agrees_with_the_plain_form(keep):
    x, weights = inputs(torch.float32)
    with torch.no_grad():
        found = residual_mlp(x, keep, weights, 1e-6, 3)
        torch.testing.assert_close(found, plain_residual_mlp(x, keep, weights, 1e-6))


@pytest.mark.parametrize("keep", [None, keeps()], ids=["all", "some"])
def test_gradients_of_gradients_are_those_of_the_plain_form(keep):
    x, weights = inputs()
    weights[0].detach_().requires_grad_(False)  # a frozen norm
    wanted = (x, *weights[1:])
    second = []
    for form in (residual_mlp, plain_residual_mlp):
        y = form(x, keep, weights, 1e-6, 3) if form is residual_mlp else form(x, keep, weights, 1e-6)
        first = torch.autograd.grad(y.square().sum(), wanted, create_graph=True)
        second.append(torch.autograd.grad(sum(g.square().sum() for g in first), wanted))
    torch.testing.assert_close(*second)


def test_nothing_that_was_given_is_written_to():
    x, weights = inputs()
    before = [t.detach().clone() for t in (x, *weights)]
    residual_mlp(x, None, weights, 1e-6, 3).sum().backward()
    assert all(torch.equal(now, b) for now, b in zip((x, *weights), before, strict=True))


def test_only_the_hidden_features_are_kept_for_the_backward_pass():
    x, weights = inputs()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        residual_mlp(x, None, weights, 1e-6, 3)
    given = {t.data_ptr() for t in (x, *weights)}
    assert [t.shape for t in kept if t.data_ptr() not in given] == [(TOKENS, HIDDEN)]
