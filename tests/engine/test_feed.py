"""Batches are on the device in the order of the loader; on a GPU one is copied ahead."""

from contextlib import contextmanager

import pytest
import torch

from tetravit.engine.feed import Feed, _tensors
from tetravit.structures import Batch, Finish, Target


class Ahead(Feed):
    """A feed of a GPU on a CPU: notes what a stream would do."""

    def __init__(self, batches, device):
        super().__init__(batches, device)
        self._stream, self.joined = "side", 0

    @contextmanager
    def _beside(self):
        yield

    def _join(self, copy):
        self.joined += 1


def batch(number):
    images = torch.full((2, 3, 4, 4), number, dtype=torch.uint8)
    return Batch(images, finish=Finish(torch.zeros(3, 1, 1), torch.ones(3, 1, 1)))


def steps(taken):
    for step in range(3):
        taken.append(step)
        yield [batch(2 * step), batch(2 * step + 1)]
    raise ValueError("no more")


def run(feed, taken):
    seen = []
    for step in range(3):
        micros = next(feed)
        for i, one in enumerate(micros):
            assert one.finish is not None
            moved = feed.on_device(one)
            assert moved.finish is None
            seen.append(round(moved.images[0, 0, 0, 0].item() * 255))
            feed.copy_ahead(micros[i + 1 : i + 2])
        feed.fetch()
        assert len(taken) == min(3, step + (1 if feed._stream is None else 2))
    return seen


@pytest.mark.parametrize("kind", [Feed, Ahead])
def test_the_order_is_that_of_the_loader(kind):
    taken = []
    feed = kind(steps(taken), torch.device("cpu"))
    assert run(feed, taken) == list(range(6))
    if kind is Ahead:
        assert feed.joined == 5  # all but the first
    with pytest.raises(ValueError, match="no more"):  # where the step begins, not where it was fetched
        next(feed)


def test_every_tensor_of_a_batch_is_kept():
    target = Target(torch.zeros(1, 4), torch.zeros(1, dtype=torch.int64))
    whole = Batch(torch.zeros(1), [target], torch.zeros(1, 2), ["x"], [0], views=[Batch(torch.ones(1))])
    assert len(list(_tensors(whole))) == 5


@pytest.mark.gpu
def test_on_a_gpu():
    taken = []
    feed = Feed(steps(taken), torch.device("cuda", 0))
    assert run(feed, taken) == list(range(6))
