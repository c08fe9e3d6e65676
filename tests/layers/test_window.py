"""Windows: cut and joined again at any size, in eager mode and in programs exported for every size."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tetravit.layers.window import join, padding, windows

sides = st.integers(1, 23)


class Double(nn.Module):
    """Cut, double, join, and add the map: the windows, and three times the map, whatever its size."""

    def forward(self, x):
        parts, padded = windows(x, 7)
        return parts, join(2 * parts, 7, padded, (x.shape[1], x.shape[2])) + x


def count(height, width, channels=2, batch=2):
    return torch.arange(1.0, batch * height * width * channels + 1).view(batch, height, width, channels)


@pytest.mark.parametrize("grid", [(14, 14), (13, 20), (3, 5)], ids=str)
def test_join_undoes_windows(grid):
    x = count(*grid)
    parts, padded = windows(x, 7)
    assert torch.equal(join(parts, 7, padded, grid), x)


@given(height=sides, width=sides, size=st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_every_token_is_in_its_window_and_the_rest_is_zero(height, width, size):
    x = count(height, width)
    parts, (rows, columns) = windows(x, size)
    assert rows % size == 0 == columns % size
    assert 0 <= rows - height < size > columns - width >= 0
    whole = torch.zeros(2, rows, columns, 2)
    whole[:, :height, :width] = x
    cut = [whole[b, r : r + size, c : c + size].reshape(-1, 2)
           for b in range(2) for r in range(0, rows, size) for c in range(0, columns, size)]  # fmt: skip
    assert torch.equal(parts, torch.stack(cut))
    assert torch.equal(join(parts, size, (rows, columns), (height, width)), x)


@given(height=sides, width=sides, size=st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_padding_marks_what_windows_added(height, width, size):
    parts, _ = windows(torch.ones(2, height, width, 1), size)
    below, right = padding(parts, size, (height, width))
    assert torch.equal(below | right, parts[..., 0] == 0)
    assert below.any() == (height % size != 0)
    assert right.any() == (width % size != 0)


@pytest.mark.slow
@pytest.mark.parametrize("example", [(2, 13, 20, 8), (3, 7, 7, 8)], ids=str)
def test_one_exported_program_serves_every_size(example):
    """No guard on sizes remains: one window or many, padded or not, also where the example was neither."""
    dims = {axis: torch.export.Dim(f"d{axis}", min=1, max=512) for axis in (0, 1, 2)}
    program = torch.export.export(Double(), (torch.rand(example),), dynamic_shapes=(dims,)).module()
    for shape in [(1, 14, 14, 8), (3, 3, 5, 8), (3, 7, 7, 8), (2, 7, 15, 8), (1, 1, 2, 8)]:
        x = torch.rand(shape)
        parts, tripled = program(x)
        assert torch.equal(parts, windows(x, 7)[0])
        assert torch.equal(tripled, 3 * x)


def test_gradients_pass_through_both_ways():
    x = count(5, 9).requires_grad_()
    Double()(x)[1].sum().backward()
    assert torch.equal(x.grad, torch.full_like(x, 3.0))


def test_a_window_has_a_side():
    with pytest.raises(ValueError) as error:
        windows(count(2, 2), 0)
    assert str(error.value) == "A window side is at least 1 token; got size=0."
