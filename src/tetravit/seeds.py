"""Stateless random numbers: functions of the seed and the position only.

Random numbers of a sample (stochastic depth, dropout, denoising) follow from (seed, step, place), where place is the
index of the sample in the batch of the whole step, over all ranks and micro-batches. They are therefore independent
of the number of processes. A layer gets the numbers for the rows of the current micro-batch:

    number_layers(task)                       once: each `RowLayer` gets its slot
    with micro_batch(seed, step, ...):        around forward and backward
        u = row_uniform(slot, rows)           (rows,) in [0, 1)

Numbers are hashes of integers, not the output of a generator: the order of calls does not matter, recomputation gives
the same numbers, and compiled code needs no generator. Outside `micro_batch` layers use torch's generator.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

MASK = 0xFFFFFFFF
GOLDEN = 0x9E3779B1  # spreads counters over many bits
VIEWS = 0x5BD1E995  # separates views from the counters of layers


def mixed(*parts: int) -> int:
    """One 63-bit seed from several integers; similar inputs give unrelated seeds."""
    digest = hashlib.blake2b(",".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_step(seed: int, step: int, micro: int, rank: int) -> None:
    """Set torch's generators for one micro-batch, for layers that use them."""
    torch.manual_seed(mixed(seed, step, micro, rank))


@dataclass
class Rows:
    """The rows (samples) of a micro-batch on this rank.

    keys: (R,) 32-bit integers in int64, one per row. table: (S, R) in [0, 1), a number per slot and row. shared: seed
    of numbers shared by the micro-batch, equal on all ranks.
    """

    keys: Tensor | None = None
    table: Tensor | None = None
    shared: int | None = None


class RowLayer(nn.Module):
    """A layer with random numbers per row. slot: index of its numbers, set by `number_layers`."""

    slot: int = 0


_current = Rows()  # never replaced: compiled graphs refer to it


def number_layers(module: nn.Module) -> int:
    """Assign a slot to every `RowLayer` inside `module`; returns their number."""
    layers = [layer for layer in module.modules() if isinstance(layer, RowLayer)]
    for slot, layer in enumerate(layers):
        layer.slot = slot
    return len(layers)


@contextmanager
def micro_batch(
    seed: int,
    step: int,
    micro: int = 0,
    *,
    rows: int,
    rank: int = 0,
    world_size: int = 1,
    slots: int = 0,
    device: torch.device | str = "cpu",
) -> Iterator[None]:
    """Context of the forward and backward pass of a micro-batch: sets the place of each row in the whole batch.

    Rows are interleaved over ranks: row j of rank r is place r + world_size * j of the micro-batch.
    """
    places = torch.arange(rows, device=device) * world_size + (rank + micro * rows * world_size)
    keys = _step_keys(seed, step, places)
    table = hashed_uniform(keys, torch.arange(slots, device=device)[:, None])
    with using(Rows(keys, table, mixed(seed, step, micro))):
        yield


@contextmanager
def views(first: int, count: int) -> Iterator[None]:
    """Context of a forward pass over `count` views per row, view-major; `first`: index of the first view.

    Each view has its own numbers; view 0 has those of the row.
    """
    keys = _current.keys
    if keys is None or (first == 0 and count == 1):
        yield
        return
    assert _current.table is not None
    numbers = torch.arange(first, first + count, device=keys.device)[:, None]
    apart = torch.where(numbers > 0, _hash(keys ^ (numbers * VIEWS & MASK)), keys).flatten()
    slots = torch.arange(len(_current.table), device=keys.device)[:, None]
    with using(Rows(apart, hashed_uniform(apart, slots), _current.shared)):
        yield


def current() -> Rows:
    """The current rows, for `using`."""
    return Rows(_current.keys, _current.table, _current.shared)


@contextmanager
def using(rows: Rows) -> Iterator[None]:
    """Use these rows: a recomputed forward pass gets the numbers of the first one."""
    before = vars(current())
    vars(_current).update(vars(rows))
    try:
        yield
    finally:
        vars(_current).update(before)


def row_uniform(slot: int, rows: int) -> Tensor | None:
    """(rows,) float32 in [0, 1), the numbers of a layer; None: no matching current rows."""
    table = _current.table
    if table is None or table.shape[1] != rows or slot >= table.shape[0]:
        return None
    return table[slot]


def row_keys(rows: int, purpose: int, device: torch.device | str) -> Tensor:
    """(rows,) int64, a key per row, for `hashed_uniform`.

    purpose: separates the numbers of different uses. Without matching current rows, the keys come from torch's
    generator.
    """
    keys = _current.keys
    if keys is None or len(keys) != rows:
        return torch.randint(MASK, (rows,), device=device)
    return _hash(keys.to(device) ^ (purpose * GOLDEN & MASK))


def hashed_uniform(keys: Tensor, counters: Tensor | int) -> Tensor:
    """Numbers in [0, 1), float32, one per key and counter; the two broadcast.

    counters: integers from 0 to 2^24, distinct for the numbers of one key.
    """
    return (_hash(keys ^ (counters * GOLDEN & MASK)) >> 8).float() * 2.0**-24


def shared_generator(purpose: int) -> torch.Generator:
    """A CPU generator for numbers shared by a micro-batch, equal on all ranks; torch's own outside a run."""
    if _current.shared is None:
        return torch.default_generator
    return torch.Generator().manual_seed(mixed(_current.shared, purpose))


def _step_keys(seed: int, step: int, places: Tensor) -> Tensor:
    """A 32-bit key for each place of a step, unique within the step."""
    high, low = divmod(mixed(seed, step) & ((1 << 62) - 1), 1 << 31)
    return _hash(_hash((places * GOLDEN & MASK) ^ low) ^ high)


def _hash(x: Tensor) -> Tensor:
    """Mix 32-bit integers in int64: a bijection whose every output bit depends on every input bit.

    Factors are below 2^31, so that no product overflows. Source: skeeto/hash-prospector.
    """
    x = (x ^ (x >> 16)) * 0x21F0AAAD & MASK
    x = (x ^ (x >> 15)) * 0x735A2D97 & MASK
    return x ^ (x >> 15)
