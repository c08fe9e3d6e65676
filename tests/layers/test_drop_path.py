"""Stochastic depth drops whole samples and keeps the mean."""

import pytest
import torch

from tetravit.layers.drop_path import DropPath, linear_rates


def test_samples_are_kept_whole_and_scaled_or_dropped():
    out = DropPath(0.25).train()(torch.ones(4000, 2, 3)).flatten(1)
    assert out.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert (out == out[:, :1]).all()
    assert abs(out.mean() - 1) < 0.05


def test_evaluation_and_rate_zero_change_nothing():
    x = torch.randn(3, 2)
    assert DropPath(0.5).eval()(x) is x
    assert DropPath(0.0).train()(x) is x


def test_rates_grow_linearly():
    assert linear_rates(0.3, 4) == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert linear_rates(0.3, 1) == [0.0]


@pytest.mark.parametrize("rate", [1.0, -0.1])
def test_a_rate_that_is_no_probability(rate):
    for build in (DropPath, lambda rate: linear_rates(rate, 3)):
        with pytest.raises(ValueError) as error:
            build(rate)
        assert str(error.value) == f"drop_path is a probability in [0, 1); got {rate}."


def test_the_samples_drawn_are_those_of_the_mask():
    layer, x = DropPath(0.5).train(), torch.randn(40, 2, 3)
    torch.manual_seed(0)
    mask = layer.mask(x)
    torch.manual_seed(0)
    draw = layer.draw(x)
    assert 0 < len(draw.rows) < len(x)
    assert torch.equal(draw.of(x), x[mask.flatten() > 0])
    torch.testing.assert_close(draw.add(x, 3 * draw.of(x)), x + mask * 3 * x)


@pytest.mark.parametrize(("rate", "factor"), [(1e-9, 1.0), (1 - 1e-9, 0.0)], ids=["all", "none"])
def test_without_a_choice_all_samples_are_computed(rate, factor):
    """Where none is drawn too: shapes stay as they are, and parameters have gradients, of zeros."""
    x = torch.randn(3, 2)
    draw = DropPath(rate).train().draw(x)
    assert draw.rows is None
    assert draw.factor == pytest.approx(factor)
    torch.testing.assert_close(draw.add(x, x), (1 + factor) * x)


def test_outside_of_training_nothing_is_drawn():
    draw = DropPath(0.5).eval().draw(torch.randn(3, 2))
    assert (draw.rows, draw.factor) == (None, 1.0)
