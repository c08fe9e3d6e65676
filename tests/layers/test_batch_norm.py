"""Batch norm in training: torch's own in all but rounding, where torch itself rounds more than it must."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tetravit.layers import batch_norm
from tetravit.layers.batch_norm import BatchNorm

SHAPES = [(2, 16, 48, 40), (3, 5, 7, 4), (2, 5, 3, 1), (2, 4, 1, 3), (1, 3, 2, 2)]


def pair(channels, **options):
    """Our norm, and torch's with the same parameters, neither as they start."""
    ours, plain = BatchNorm(channels, **options), nn.BatchNorm2d(channels, **options)
    for p in ours.parameters():
        nn.init.normal_(p)
    plain.load_state_dict(ours.state_dict())
    return ours, plain


def channels_last(shape, offset=0.5):
    """A map whose channels are not centred."""
    return (torch.randn(shape) + offset).contiguous(memory_format=torch.channels_last)


def trained(norm, x, pull):
    """What a step gives: the answer, the gradients, the running statistics."""
    x = x.detach().clone().requires_grad_()
    y = norm(x)
    y.backward(pull)
    return [y.detach(), x.grad, *(p.grad for p in norm.parameters()), *norm.buffers()]


def error(found, exact):
    """Relative to the size of the whole tensor."""
    return ((found.double() - exact).norm() / exact.double().norm().clamp_min(1e-30)).item()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_step_is_that_of_torch(shape):
    ours, plain = pair(shape[1], momentum=0.3, eps=1e-3)
    x, pull = channels_last(shape), torch.randn(shape)
    assert ours._by_columns(x)
    exact = trained(copy.deepcopy(plain).double(), x.double(), pull.double())
    for found, wanted in zip(trained(ours, x, pull), exact, strict=True):
        assert found.dtype in (torch.float32, torch.int64)
        assert error(found, wanted) < 1e-6
    assert ours.state_dict().keys() == plain.state_dict().keys()
    assert ours.num_batches_tracked == 1
    assert ours(x).is_contiguous(memory_format=torch.channels_last)


def test_torch_alone_is_less_exact():
    """Where this fails, torch keeps the precision itself: the layer can go."""
    ours, plain = pair(16)
    x = channels_last((2, 16, 192, 192))
    exact = copy.deepcopy(plain).double()(x.double())
    assert error(ours(x), exact) < 1e-7
    assert error(plain(x), exact) > 1e-6


def test_statistics_are_those_of_the_whole_batch():
    x = channels_last((3, 5, 8, 6), offset=40.0)
    mean, var = batch_norm.statistics(x)
    torch.testing.assert_close(mean, x.double().mean((0, 2, 3)).float(), rtol=1e-6, atol=0)
    torch.testing.assert_close(var, x.double().var((0, 2, 3), correction=0).float(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("fixed", ["x", "weight", "bias"])
def test_what_is_frozen_gets_no_gradient(fixed):
    ours, plain = pair(4)
    x, pull = channels_last((2, 4, 5, 5)), torch.randn(2, 4, 5, 5)
    gradients = []
    for norm in (ours, plain):
        given = {"x": x.clone().requires_grad_(), **dict(norm.named_parameters())}
        given[fixed].requires_grad_(False)
        norm(given["x"]).backward(pull)
        gradients.append({name: t.grad for name, t in given.items()})
    assert gradients[0].pop(fixed) is gradients[1].pop(fixed) is None
    torch.testing.assert_close(*gradients)


def test_gradients_of_gradients_are_those_of_torch():
    ours, plain = pair(4)
    x, pull = channels_last((2, 4, 5, 5)), torch.randn(2, 4, 5, 5)
    found = []
    for norm in (ours, plain):
        leaf = x.clone().requires_grad_()
        (first,) = torch.autograd.grad(norm(leaf), leaf, pull, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), (leaf, norm.weight)))
    torch.testing.assert_close(*found)


def test_recomputed_blocks_give_the_same_gradients():
    ours, _ = pair(4)
    x, pull = channels_last((2, 4, 5, 5)), torch.randn(2, 4, 5, 5)
    again = copy.deepcopy(ours)
    straight = trained(ours, x, pull)
    recomputed = trained(Recomputed(again), x, pull)
    for found, wanted in zip(recomputed[:4], straight[:4], strict=True):
        assert torch.equal(found, wanted)


class Recomputed(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x):
        return checkpoint(self.norm, x, use_reentrant=False)


@pytest.mark.parametrize("case", ["eval", "contiguous", "bfloat16", "double", "mixed", "average", "bare"])
def test_elsewhere_it_is_torch_to_the_bit(case):
    options = {"average": {"momentum": None}, "bare": {"affine": False}}.get(case, {})
    x = channels_last((2, 4, 5, 5))
    norms = pair(4, **options)
    if case == "contiguous":
        x = x.contiguous()
    if case in ("bfloat16", "mixed"):
        x = x.bfloat16()
    if case in ("bfloat16", "double"):
        norms = [norm.to(getattr(torch, case)) for norm in norms]
        x = x.to(getattr(torch, case))
    answers = [norm.train(case != "eval")(x) for norm in norms]
    assert torch.equal(*answers)
    assert all(torch.equal(a, b) for a, b in zip(*(norm.buffers() for norm in norms), strict=True))


def test_autocast_leaves_it_in_float32():
    ours, _ = pair(4)
    x = channels_last((2, 4, 5, 5)).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = ours(x)
    y.sum().backward()
    assert y.dtype == x.grad.dtype == torch.float32


@pytest.mark.slow
def test_a_compiled_graph_takes_the_plain_form():
    ours, plain = pair(4)
    x, pull = channels_last((2, 4, 5, 5)), torch.randn(2, 4, 5, 5)
    compiled = torch.compile(ours, backend="eager", fullgraph=True)
    for found, wanted in zip(trained(compiled, x, pull), trained(plain, x, pull), strict=True):
        assert torch.equal(found, wanted)


def test_one_value_a_channel_is_refused_as_torch_does():
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        BatchNorm(4)(torch.randn(1, 4, 1, 1))
