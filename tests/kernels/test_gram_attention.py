"""The Gram form of cross-covariance attention is the plain one, only cheaper."""

import pytest
import torch

from tetravit.kernels.gram_attention import gram_cross_covariance, plain_cross_covariance
from tetravit.models import create_model


def arguments(tokens, dim=48, heads=4, batch=2, dtype=torch.float64, offset=0.0):
    torch.manual_seed(tokens + dim)
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64)  # noqa: E731
    x = draw(batch, tokens, dim) + offset
    qkv = (0.2 * draw(3 * dim, dim), draw(3 * dim))
    temperature, proj = draw(heads, 1, 1).exp(), (0.2 * draw(dim, dim), draw(dim))
    return tuple(
        tuple(t.to(dtype) for t in a) if isinstance(a, tuple) else a.to(dtype)
        for a in (x, qkv, temperature, proj)
    )


@pytest.mark.parametrize("tokens", [1, 5, 48, 400])
@pytest.mark.parametrize(("dim", "heads"), [(48, 4), (64, 1), (24, 8)])
def test_both_forms_are_equal_in_double_precision(tokens, dim, heads):
    given = arguments(tokens, dim, heads)
    torch.testing.assert_close(
        gram_cross_covariance(*given), plain_cross_covariance(*given), rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize(("offset", "times"), [(0.0, 2), (3.0, 5)])  # a mean of three deviations cancels in G
def test_single_precision_is_about_as_exact_as_the_plain_form(offset, times):
    exact = plain_cross_covariance(*arguments(400, offset=offset))
    given = arguments(400, dtype=torch.float32, offset=offset)
    plain, gram = ((f(*given) - exact).abs().max() for f in (plain_cross_covariance, gram_cross_covariance))
    assert gram < times * plain + 1e-7


def test_gradients_are_equal():
    leaves = [arguments(200) for _ in range(2)]
    grads = []
    for form, (x, qkv, temperature, proj) in zip(
        (plain_cross_covariance, gram_cross_covariance), leaves, strict=True
    ):
        inputs = [t.requires_grad_() for t in (x, *qkv, temperature, *proj)]
        form(x, qkv, temperature, proj).sin().sum().backward()
        grads.append([t.grad for t in inputs])
    for plain, gram in zip(*grads, strict=True):
        torch.testing.assert_close(gram, plain, rtol=1e-9, atol=1e-9)


def test_channels_that_are_nothing_give_no_nan():
    x, (weight, bias), temperature, proj = arguments(100)
    weight[:48], bias[:48] = 0, 0  # queries
    given = (x, (weight, bias), temperature, proj)
    torch.testing.assert_close(gram_cross_covariance(*given), plain_cross_covariance(*given))


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_a_model_takes_it_for_many_tokens_only(mode, monkeypatch):
    model = create_model("xcit_nano_12_p8", num_classes=3, depth=2, image_size=128).train(mode == "train")
    used = []
    form = "tetravit.kernels.gram_attention.gram_projection"
    from tetravit.kernels import gram_attention

    kept = gram_attention.gram_projection
    monkeypatch.setattr(form, lambda x, *rest: used.append(x.shape[1]) or kept(x, *rest))
    for side, expected in ((64, []), (128, [256, 256])):
        used.clear()
        images = torch.randn(2, 3, side, side)
        fast = model(images)
        assert used == expected
        monkeypatch.setattr("tetravit.backbones.xcit.can_use_fused", lambda *_: False)
        torch.testing.assert_close(model(images), fast, rtol=1e-5, atol=1e-5)
        monkeypatch.undo()
        monkeypatch.setattr(form, lambda x, *rest: used.append(x.shape[1]) or kept(x, *rest))
