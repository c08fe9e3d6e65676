"""What is drawn for a sample depends on the seed, the step and its place in the whole batch, and on nothing else."""

import pytest
import torch
from torch import nn

from tetravit import seeds
from tetravit.layers.drop_path import DropPath
from tetravit.layers.dropout import Dropout2d
from tetravit.layers.recompute import recomputed


def layers():
    model = nn.Sequential(DropPath(0.4), DropPath(0.4), nn.Sequential(Dropout2d(0.5))).train()
    return model, seeds.number_layers(model)


def drawn(model, slots, *, rank=0, world_size=1, micro=0, rows=8, step=3):
    with seeds.micro_batch(5, step, micro, rows=rows, rank=rank, world_size=world_size, slots=slots):
        return model(torch.ones(rows, 6, 2, 2))


@pytest.mark.parametrize(("world_size", "accumulate"), [(2, 1), (4, 1), (1, 2), (2, 2)])
def test_ranks_and_micro_batches_share_the_draws_of_one(world_size, accumulate):
    model, slots = layers()
    assert slots == 3
    whole = drawn(model, slots)
    rows = 8 // world_size // accumulate
    for micro in range(accumulate):
        for rank in range(world_size):
            part = drawn(model, slots, rank=rank, world_size=world_size, micro=micro, rows=rows)
            first = micro * rows * world_size
            assert torch.equal(part, whole[first + rank : first + rows * world_size : world_size])
    assert not torch.equal(whole, drawn(model, slots, step=4))


def test_the_numbers_are_uniform_and_unrelated():
    with seeds.micro_batch(0, 0, rows=4000, slots=50):
        table = seeds.current().table
        assert seeds.row_uniform(0, 3999) is None
    assert table.min() >= 0
    assert table.max() < 1
    counts = torch.histc(table, 100, 0, 1)
    assert ((counts - 2000).square() / 2000).sum() < 150  # chi-squared of 99 degrees of freedom
    correlation = torch.corrcoef(table) - torch.eye(50)
    assert correlation.abs().max() < 5 / 4000**0.5
    neighbours = torch.corrcoef(torch.stack((table[:, :-1].flatten(), table[:, 1:].flatten())))[0, 1]
    assert abs(neighbours) < 4 / 200_000**0.5
    with seeds.micro_batch(0, 1, rows=4000, slots=50):
        steps = torch.corrcoef(torch.stack((table.flatten(), seeds.current().table.flatten())))[0, 1]
    assert abs(steps) < 4 / 200_000**0.5


def test_rates_are_kept():
    model, slots = layers()
    out = drawn(model, slots, rows=3000)
    assert out.mean() == pytest.approx(1, abs=0.06)
    assert out.unique().tolist() == pytest.approx([0, 1 / 0.6 / 0.6 / 0.5], rel=1e-5)


def test_views_of_a_row_have_numbers_of_their_own():
    with seeds.micro_batch(0, 0, rows=500, slots=2):
        one = seeds.row_uniform(1, 500)
        with seeds.views(0, 3):
            three = seeds.row_uniform(1, 1500)
        with seeds.views(2, 1):
            third = seeds.row_uniform(1, 500)
        assert torch.equal(three[:500], one)
        assert torch.equal(three[1000:], third)
        assert abs(torch.corrcoef(three.view(3, 500)) - torch.eye(3)).max() < 0.2


def test_keys_serve_other_uses_and_outside_a_run_torch_decides():
    with seeds.micro_batch(0, 0, rows=4):
        keys = seeds.row_keys(4, 1, "cpu")
        assert torch.equal(keys, seeds.row_keys(4, 1, "cpu"))
        assert not torch.equal(keys, seeds.row_keys(4, 2, "cpu"))
        assert seeds.hashed_uniform(keys[[0, 0, 3]], torch.arange(3)).unique().numel() == 3
        a, b = (torch.rand((), generator=seeds.shared_generator(1)) for _ in range(2))
        assert a == b
    torch.manual_seed(0)
    a = seeds.row_keys(4, 1, "cpu")
    torch.manual_seed(0)
    assert torch.equal(a, seeds.row_keys(4, 1, "cpu"))
    assert seeds.shared_generator(1) is torch.default_generator


def test_a_recomputed_pass_draws_the_same_numbers_even_for_views():
    drop = DropPath(0.5).train()
    seeds.number_layers(drop)
    x = torch.ones(40, 3, requires_grad=True)
    with seeds.micro_batch(0, 0, rows=20, slots=1):
        with seeds.views(1, 2):
            y = recomputed(lambda x: drop(x * x), x)
        y.sum().backward()
    assert torch.equal(x.grad, 2 * y.detach())


def test_compiled_layers_draw_the_same_and_are_compiled_once():
    model, slots = layers()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for step in range(4):
        assert torch.equal(drawn(compiled, slots, step=step), drawn(model, slots, step=step))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 1
