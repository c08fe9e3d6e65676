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
