"""What is remembered per size is never stale, and never gets in the way."""

import copy
import pickle

import pytest
import torch

from tetravit.layers.cache import SizeCache
from tetravit.layers.vit import LearnedPosition


class Counter:
    """Computes from a tensor, and counts how often it was asked."""

    def __init__(self):
        self.source, self.calls = torch.ones(3), 0

    def compute(self):
        self.calls += 1
        return self.source * 2


@pytest.fixture
def counter():
    return Counter()


def test_the_same_size_is_computed_once(counter):
    cache = SizeCache()
    with torch.no_grad():
        first = cache.get((2, 3), [counter.source], counter.compute)
        assert cache.get((2, 3), [counter.source], counter.compute) is first
        cache.get((3, 2), [counter.source], counter.compute)
    assert counter.calls == 2


def test_a_changed_parameter_is_noticed(counter):
    cache = SizeCache()
    with torch.no_grad():
        cache.get("size", [counter.source], counter.compute)
        counter.source.add_(1)
        assert torch.equal(cache.get("size", [counter.source], counter.compute), torch.full((3,), 4.0))


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_of_an_optimizer_is_noticed(fused):
    """The fused one leaves the version of a parameter as it was."""
    positions = LearnedPosition(4, (2, 2))
    optimizer = torch.optim.AdamW(positions.parameters(), lr=0.1, fused=fused)
    for _ in range(2):
        with torch.no_grad():
            assert torch.equal(positions((2, 2)), positions.table)
        positions((2, 2)).sum().backward()
        optimizer.step()
    with torch.no_grad():
        assert torch.equal(positions((2, 2)), positions.table)


def test_nothing_is_remembered_while_gradients_are_recorded(counter):
    cache = SizeCache()
    for _ in range(2):
        cache.get("size", [counter.source], counter.compute)
    assert counter.calls == 2


def test_only_the_last_sizes_and_nothing_large_are_kept(counter):
    cache = SizeCache(entries=1)
    with torch.no_grad():
        for size in (1, 2, 1):
            cache.get(size, [counter.source], counter.compute)
    assert counter.calls == 3
    small = SizeCache(limit_mib=0)
    with torch.no_grad():
        for _ in range(2):
            small.get(1, [counter.source], counter.compute)
    assert counter.calls == 5


def test_copies_and_pickles_start_empty(counter):
    cache = SizeCache(entries=3, limit_mib=7)
    with torch.no_grad():
        cache.get(1, [counter.source], counter.compute)
    for other in (copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))):
        assert (other.entries, other.limit_mib) == (3, 7)
        with torch.no_grad():
            other.get(1, [counter.source], counter.compute)
    assert counter.calls == 3


def test_autocast_has_results_of_its_own():
    cache, weight = SizeCache(), torch.randn(4, 4)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            low = cache.get("size", [weight], lambda: weight @ weight)
        full = cache.get("size", [weight], lambda: weight @ weight)
    assert (low.dtype, full.dtype) == (torch.bfloat16, torch.float32)


def test_another_tensor_at_the_same_place_is_noticed():
    cache, seen = SizeCache(), set()
    with torch.no_grad():
        for value in range(20):
            source = torch.full((4,), float(value))  # the allocator likes to give the same address again
            seen.add(cache.get("size", [source], lambda source=source: source * 1)[0].item())
            del source
    assert seen == {float(value) for value in range(20)}
