"""The linear layer with what follows it agrees with its plain form: answers, gradients, gradients of gradients."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tetravit.kernels import linear
from tetravit.kernels.linear import fused_linear, plain_linear

SHAPES = [(7, 4, 6), (7, 6, 4), (50, 3, 5), (1, 1, 1), (0, 4, 6)]  # tokens, width, width of the answer


def inputs(shape, dtype=torch.float32):
    """Tokens, weight, bias and residual that want gradients."""
    T, C, F = shape
    return tuple(torch.randn(s, dtype=dtype, requires_grad=True) for s in [(T, C), (F, C), (F,), (T, F)])


@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("gelu", [True, False])
@pytest.mark.parametrize("given", [2, 3, 4], ids=["product", "bias", "residual"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_answers_agree_with_the_plain_form(mode, shape, given, gelu, onednn, monkeypatch):
    if onednn:  # also on processors where it is the slower one
        monkeypatch.setattr(linear, "_fuses_faster", lambda narrow: True)
    else:
        monkeypatch.setattr(linear, "_for_onednn", lambda *_: False)
    x, weight, bias, residual = (*inputs(shape)[:given], None, None)[:4]
    with mode():
        found = fused_linear(x, weight, bias, residual, gelu=gelu)
        torch.testing.assert_close(found, plain_linear(x, weight, bias, residual, gelu=gelu))


@pytest.mark.parametrize("gelu", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients_agree_with_the_plain_form(shape, dtype, gelu):
    given = inputs(shape, dtype)
    answers = [form(*given, gelu=gelu) for form in (fused_linear, plain_linear)]
    pull = torch.randn_like(answers[0])
    torch.testing.assert_close(*(torch.autograd.grad(y, given, pull) for y in answers))


def test_gradients_of_gradients_agree_with_the_plain_form():
    given = inputs((7, 4, 6), torch.float64)
    second = []
    for form in (fused_linear, plain_linear):
        first = torch.autograd.grad(form(*given).square().sum(), given, create_graph=True)
        second.append(torch.autograd.grad(sum(g.square().sum() for g in first), given))
    torch.testing.assert_close(*second)


@pytest.mark.parametrize("frozen", range(4))
def test_what_is_frozen_gets_no_gradient(frozen):
    given = inputs((7, 4, 6))
    given[frozen].requires_grad_(False)
    fused_linear(*given).sum().backward()
    assert [t.grad is None for t in given] == [i == frozen for i in range(4)]


def test_nothing_that_was_given_is_written_to():
    given = inputs((7, 4, 6))
    before = [t.detach().clone() for t in given]
    with torch.no_grad():
        fused_linear(*given)
    fused_linear(*given).sum().backward()
    assert all(torch.equal(t, b) for t, b in zip(given, before, strict=True))


def test_a_flop_counter_sees_the_products():
    given = inputs((7, 4, 6))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        fused_linear(*given)
        fused_linear(*given[:3], gelu=True)
    assert counter.get_total_flops() == 2 * 2 * 7 * 4 * 6


class Marked(torch.Tensor):
    """A tensor that is more than its numbers, as quantized weights are."""


def test_other_kinds_of_tensors_and_types_take_the_plain_way(monkeypatch):
    monkeypatch.setattr(linear, "_fuses_faster", lambda narrow: True)
    x, weight = torch.randn(7, 4), torch.randn(6, 4)
    assert not linear._for_onednn(x, weight.as_subclass(Marked), None)
    assert not linear._for_onednn(x.double(), weight.double(), None)
    assert not linear._for_onednn(x.to("meta"), weight.to("meta"), None)
    assert linear._for_onednn(x, nn.Parameter(weight), None) == torch.backends.mkldnn.is_available()
    monkeypatch.setattr(torch._C, "_get_mkldnn_enabled", lambda: False)  # torch.backends.mkldnn.enabled
    assert not linear._for_onednn(x, weight, None)


def test_a_bias_with_strides_is_read_right():
    x, weight = torch.randn(5, 8), torch.randn(16, 8)
    for bias in (torch.randn(1).expand(16), torch.randn(32)[::2]):
        with torch.no_grad():
            torch.testing.assert_close(fused_linear(x, weight, bias), plain_linear(x, weight, bias))


@pytest.mark.parametrize(
    ("capability", "narrow", "fused"),
    [
        ("AVX2", False, False),
        ("AVX2", True, True),
        ("DEFAULT", False, False),
        ("DEFAULT", True, False),
        ("AVX512", False, True),
    ],
)
def test_processors_with_avx2_take_plain_products_between_wide_layers(capability, narrow, fused, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    linear._fuses_faster.cache_clear()
    assert linear._fuses_faster(narrow) is fused
    linear._fuses_faster.cache_clear()
