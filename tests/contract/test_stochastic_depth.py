"""Dropped branches are not computed: answers and gradients are those of masks, for every family."""

import copy

import pytest
import torch
from tests.toys import TOYS
from torch import nn

from tetravit.layers import mlp
from tetravit.models import create_model


@pytest.fixture(params=TOYS)
def model(request):
    torch.manual_seed(0)
    model = create_model(request.param, num_classes=5, drop_path=0.5, **TOYS[request.param]).train()
    for name, p in model.named_parameters():
        if "gamma" in name or "norm" in name:
            nn.init.normal_(p)
    return model


def watched(model):
    """A copy whose norms have a hook, which must see whole batches."""
    model, sizes = copy.deepcopy(model), []
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.register_forward_hook(lambda _module, inputs, _output: sizes.append(len(inputs[0])))
    return model, sizes


def step(model, images):
    torch.manual_seed(1)
    y = model(images)
    y.square().sum().backward()
    return y.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("at_once", [0, 2**22], ids=["parts", "whole"])
def test_answers_and_gradients_are_those_of_masks(model, at_once, monkeypatch):
    monkeypatch.setattr(mlp, "AT_ONCE", at_once)
    (plain, sizes), images = watched(model), torch.randn(6, 3, 64, 96)
    (found, gradients), (expected, others) = step(model, images), step(plain, images)
    assert set(sizes) == {6}
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert gradients.keys() == others.keys()
    for name, gradient in others.items():
        scale = float(gradient.abs().max()) + 1e-3
        torch.testing.assert_close(gradients[name], gradient, rtol=0, atol=1e-4 * scale)
