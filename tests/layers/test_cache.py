"""What is kept per size is never stale, and changes no result."""

import copy
import pickle

import pytest
import torch
from torch import nn

from tetravit.layers.cache import SizeCache
from tetravit.layers.vit import LearnedPosition


class Counter:
    """Computes from a tensor, and counts how often it did."""

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


WRITES = {
    "add": lambda p: p.add_(1),
    "data": lambda p: p.data.mul_(0.5).add_(1),
    "item": lambda p: p.data.view(-1)[1:2].fill_(3),
    "copy": lambda p: p.data.copy_(torch.full((3,), 5.0)),
    "storage": lambda p: setattr(p, "data", torch.full((3,), 5.0)),
    "vector": lambda p: nn.utils.vector_to_parameters(torch.full((3,), 5.0), [p]),
    "numpy": lambda p: p.data.numpy().__setitem__(0, 7.0),
    "nan": lambda p: p.data.fill_(float("nan")),
    "sign": lambda p: p.data.zero_().neg_(),
    "type": lambda p: setattr(p, "data", p.data.double()),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_no_write_escapes(write):
    """Averages of weights (EMA, DINO's and MoCo's teachers) are written past the versions of tensors."""
    cache, source = SizeCache(), nn.Parameter(torch.ones(3))
    with torch.no_grad():
        cache.get("size", [source], lambda: source * 2)
        write(source)
        for _ in range(2):
            result = cache.get("size", [source], lambda: source * 2)
            torch.testing.assert_close(result, source * 2, rtol=0, atol=0, equal_nan=True)
            assert torch.equal(result.signbit(), source.signbit())


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
    for _ in range(3):
        with torch.no_grad():
            assert torch.equal(positions((3, 3)), copy.deepcopy(positions)((3, 3)))
        positions((3, 3)).square().sum().backward()
        optimizer.step()


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
