"""The fast forms of attention with a bias agree with the plain one, gradients included."""

from functools import partial

import pytest
import torch

from tetravit.kernels.biased_attention import attention_weights, biased_attention, split


def plain(packed, bias, query=None):
    q, k, v = split(packed, query)
    return (attention_weights(q, k, bias) @ v).transpose(1, 2).flatten(2)


in_place = partial(biased_attention, in_place=True)


def inputs(parts, windows=3, dtype=torch.float32):
    """Projections, a bias, and queries where the projections hold none; all want gradients."""
    packed = torch.randn(windows, 9, parts, 2, 8, dtype=dtype)
    bias = torch.randn(2, 9, 9, dtype=dtype)
    query = torch.randn(windows, 2, 9, 8, dtype=dtype)
    wanted = (packed, bias) if parts == 3 else (packed, bias, query)
    return tuple(x.requires_grad_() for x in wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("windows", [1, 3])
@pytest.mark.parametrize("parts", [2, 3])
def test_training_agrees_with_the_plain_form(parts, windows, dtype):
    given = inputs(parts, windows, dtype)
    weight = torch.randn(windows, 9, 16, dtype=dtype)
    answers, gradients = [], []
    for form in (in_place, biased_attention, plain):
        answer = form(*given)
        answers.append(answer)
        gradients.append(torch.autograd.grad((answer * weight).sum(), given))
    for i in range(2):
        torch.testing.assert_close(answers[i], answers[2])
        torch.testing.assert_close(gradients[i], gradients[2])


@pytest.mark.parametrize("parts", [2, 3])
def test_gradients_of_gradients_are_those_of_the_plain_form(parts):
    given = inputs(parts, dtype=torch.float64)
    assert torch.autograd.gradgradcheck(in_place, given, fast_mode=True)


@pytest.mark.parametrize("parts", [2, 3])
def test_evaluation_agrees_with_the_plain_form(parts):
    given = inputs(parts)
    with torch.no_grad():
        torch.testing.assert_close(biased_attention(*given), plain(*given))


@pytest.mark.parametrize("windows", [1, 3])
def test_nothing_that_was_given_is_written_to(windows):
    given = inputs(2, windows)
    before = [x.detach().clone() for x in given]
    in_place(*given).sum().backward()
    assert all(torch.equal(x, b) for x, b in zip(given, before, strict=True))


def test_gradients_reach_a_shared_query():
    """The queries of an image serve several windows: their gradient is the sum."""
    packed, bias, _ = inputs(2)
    query = torch.randn(1, 2, 9, 8, requires_grad=True)
    gradients = [
        torch.autograd.grad(form(packed, bias, query.expand(3, -1, -1, -1)).square().sum(), query)
        for form in (in_place, plain)
    ]
    torch.testing.assert_close(*gradients)


def test_weights_are_distributions():
    packed, bias = inputs(3)
    weights = attention_weights(*split(packed)[:2], bias)
    assert weights.shape == (3, 2, 9, 9)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 2, 9))
