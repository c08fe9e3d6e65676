"""The order of training images: keyed permutations, shards mixed some at a time, old runs keep theirs."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import tetravit
from tetravit.data.config import DataConfig
from tetravit.data.order import Order
from tetravit.recipe import dump, load
from tetravit.runs.resume import load_kept

COUNTS = (7, 3, 12, 1, 9, 8)
SIZE = sum(COUNTS)
FULL = [20, 9, 30, 29, 35, 1, 34, 14]
SHARDS = [4, 5, 7, 9, 2, 3, 1, 6]
TABLE = [0, 1, 32, 39, 10, 13, 22, 6]


def line(shuffle, seed=0, epoch=0, **options):
    order = Order(SIZE, 1, seed, shuffle=shuffle, **options)
    return [order.image(epoch, k) for k in range(SIZE)]


@pytest.mark.parametrize("shuffle", ["full", "shards(1)", "shards(2)", "shards(100)", "table"])
def test_each_image_once_and_by_seed_epoch_and_place_alone(shuffle):
    drawn = line(shuffle, shards=COUNTS)
    assert sorted(drawn) == list(range(SIZE))
    order = Order(SIZE, 1, 0, shuffle=shuffle, shards=COUNTS)
    places = np.random.default_rng(0).permutation(SIZE)
    epochs = [0, 3, 0]
    assert [[order.image(e, int(k)) for k in places] for e in epochs][2] == [drawn[k] for k in places]
    assert len({tuple(line(shuffle, s, e, shards=COUNTS)) for s in (0, 1) for e in (0, 1)}) == 4
    repeated = Order(SIZE, 3, 0, shuffle=shuffle, shards=COUNTS)
    assert [repeated.image(0, k) for k in range(6)] == [drawn[0]] * 3 + [drawn[1]] * 3
    assert order.image(0, SIZE - 1, shift=1) == drawn[0]


def test_the_numbers_of_this_version():
    """A run goes on in the order that it began with: these never change."""
    assert line("full")[:8] == FULL
    assert line("shards(2)", shards=COUNTS)[:8] == SHARDS
    assert line("table")[:8] == TABLE


def test_shards_are_mixed_some_at_a_time():
    shard_of = np.repeat(np.arange(6), COUNTS)
    for epoch in range(3):
        shards = shard_of[line("shards(2)", epoch=epoch, shards=COUNTS)]
        start, seen = 0, []
        while start < SIZE:
            first = next(
                n for n in range(1, SIZE + 1) if len(set(shards[start : start + n])) == 2 or n == SIZE
            )
            pair = set(shards[start : start + first].tolist())
            size = sum(COUNTS[s] for s in pair)
            assert set(shards[start : start + size].tolist()) == pair
            seen += sorted(pair)
            start += size
        assert sorted(seen) == list(range(6))


def test_no_table_of_14_million():
    tracemalloc.start()
    order = Order(14_200_000, 1, 0, shuffle="full")
    some = [order.image(0, k) for k in range(0, 14_200_000, 14_200)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20
    assert len(set(some)) == 1000
    assert max(some) < 14_200_000
    assert abs(np.mean(some) / 7_100_000 - 1) < 0.06


def test_texts():
    assert DataConfig(name="digits", batch_size=1).shuffle == "full"
    for text in ("shards(0)", "shards", "random"):
        with pytest.raises(ValueError) as error:
            DataConfig(name="digits", batch_size=1, shuffle=text)
        assert f"data.shuffle is full, shards(N) with N from 1 up, or table; got '{text}'." in str(
            error.value
        )
    with pytest.raises(ValueError) as error:
        Order(10, 1, 0, shuffle="shards(4)")
    assert str(error.value) == "data.shuffle=shards(4) needs a set of shards; use data.shuffle=full."


def test_a_run_from_before_keeps_its_order(tmp_path):
    text = dump(load(Path(tetravit.__file__).parent / "recipes" / "digits.toml"))
    (tmp_path / "recipe.toml").write_text(text)
    assert load_kept(tmp_path).data.shuffle == "full"
    (tmp_path / "recipe.toml").write_text(text.replace('shuffle = "full"\n', ""))
    assert load_kept(tmp_path).data.shuffle == "table"
